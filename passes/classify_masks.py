"""Evaluate every mask on a concrete grid, and keep what it means instead of how it was computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from sleepc.errors import Refusal
from sleepc.ir.graph import Graph, is_call
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.base import Effect, Pass
from sleepc.passes.dependence import learned_positions
from sleepc.passes.values import evaluate

# Seen structure ends here: a window wider than the grid looks like none, and is none for any KV window below it.
GRID = 4352
# A window or a chunk stands in the mask's code as a number. Where there is none, a grid of GRID squared would only cost
# memory.
LEAST, MARGIN = 512, 2
SMALL = 24
MASKED = -1e4


@dataclass(frozen=True)
class MaskClass:
    """What a query at i sees: keys j <= i, and j > i - window where the window is not 0."""

    window: int = 0


@dataclass(frozen=True)
class ClassifyMasks(Pass):
    """Replace each attention's mask tensor by `causal=True, window=w`.

    The mask's subgraph runs on numbers: on one row of up to GRID tokens, and on small batches of different tokens,
    where it must not change. Also notes how many positions a learned table has, which bounds the grid.
    Raises Refusal: BIDIRECTIONAL where a query sees later keys, UNKNOWN_MASK for anything else that is not a window.
    """

    name: ClassVar[str] = "classify-masks"
    effect: ClassVar[Effect] = "EXACT"

    def run(self, program: ProgramGraphs) -> int:
        """The number of masks replaced."""
        graph = program.embed
        limit = learned_positions(graph)
        if limit is not None:
            program.max_positions = min(limit, program.max_positions or limit)
        sites = [n for n in graph.calls() if is_call(n, torch.ops.sleepc.attention.default)]
        known: dict[fx.Node, MaskClass] = {}
        bidirectional = [n for n in sites if n.args[3] is None and not n.kwargs.get("causal")]
        count = 0
        for node in sites:
            mask = node.args[3]
            if not isinstance(mask, fx.Node):
                continue
            if mask not in known:
                known[mask] = _classify(program, graph, mask, node.meta.get("source", ""))
            if known[mask].window < 0:
                bidirectional.append(node)
                continue
            # Every argument is spelled out, since export leaves out those at their default.
            node.args = (*node.args[:3], None, node.args[4] if len(node.args) > 4 else None)
            node.kwargs = {"softcap": 0.0, **node.kwargs, "causal": True, "window": known[mask].window}
            count += 1
        if bidirectional:
            raise _bidirectional(len(bidirectional), len(sites))
        graph.drop_dead()
        return count


def _bidirectional(count: int, total: int) -> Refusal:
    every = "all" if count == total else f"{count} of"
    return Refusal(
        "BIDIRECTIONAL",
        f"nothing to convert: {every} {total} attention layers are bidirectional, "
        "and a memory can only be built for causal attention",
        fix="sleepc converts decoder-only language models. `sleepc inspect MODEL` shows what it sees.",
    )


def _classify(program: ProgramGraphs, graph: Graph, mask: fx.Node, where: str) -> MaskClass:
    size = min(_grid_size(graph, mask), program.max_positions or GRID)
    grid = evaluate_mask(program, graph, mask, torch.zeros(1, size, dtype=torch.int64))[0]
    result = classify_grid(grid)
    if result is None:
        raise Refusal("UNKNOWN_MASK", "a mask is neither causal nor a sliding window", where=where)
    small = min(SMALL, size)
    tokens = torch.arange(3 * small).reshape(3, small) % max(program.vocab, 1)
    several = evaluate_mask(program, graph, mask, tokens)
    if not (several == grid[:small, :small]).all():
        raise Refusal("UNKNOWN_MASK", "a mask depends on the tokens or on the length of the call", where=where)
    return result


def _grid_size(graph: Graph, mask: fx.Node) -> int:
    """Tokens enough to see what a mask does, by the largest number among its operators' arguments."""
    numbers: list[int] = []
    for node in _needed(graph, mask):
        fx.node.map_aggregate((node.args, dict(node.kwargs)), lambda a: numbers.append(a) if type(a) is int else None)
        if node.op == "placeholder" and node.meta["port"].kind != "input":
            return GRID  # numbers may come from a parameter
    return min(GRID, max(LEAST, MARGIN * max(map(abs, numbers), default=0)))


def _needed(graph: Graph, target: fx.Node) -> list[fx.Node]:
    """The nodes that `target` is computed from, and itself, in order."""
    needed = {target}
    for node in reversed(list(graph.fx.nodes)):
        if node in needed:
            needed.update(node.all_input_nodes)
    return [node for node in graph.fx.nodes if node in needed]


def classify_grid(grid: torch.Tensor) -> MaskClass | None:
    """The class of a bool mask [T,T]; window -1 for bidirectional, None for anything unknown."""
    size = grid.shape[0]
    i = torch.arange(size)
    causal = i[None] <= i[:, None]
    if bool((grid & ~causal).any()):
        return MaskClass(-1)
    seen_by_last = int(grid[-1].sum())
    if bool((grid == causal).all()):
        return MaskClass()
    window = causal & (i[None] > i[:, None] - seen_by_last)
    return MaskClass(seen_by_last) if seen_by_last and bool((grid == window).all()) else None


def evaluate_mask(program: ProgramGraphs, graph: Graph, mask: fx.Node, tokens: torch.Tensor) -> torch.Tensor:
    """Run the mask's subgraph for tokens [B,T] at positions 0..T-1: bool [B or 1,T,T], True where a query sees a key.

    Raises Refusal(UNKNOWN_MASK) where heads have different masks (ALiBi and the like).
    """
    value = _run_upto(program, graph, mask, tokens)
    seen = value if value.dtype == torch.bool else value > MASKED
    if value.is_floating_point() and bool(((value != 0) & seen).any()):
        raise Refusal("UNKNOWN_MASK", "a mask adds numbers to scores that are seen (ALiBi or a learned bias)")
    while seen.dim() < 4:
        seen = seen[None]
    if seen.shape[1] != 1 and not bool((seen == seen[:, :1]).all()):
        raise Refusal("UNKNOWN_MASK", "heads of one layer have different masks")
    return seen[:, 0]


def _run_upto(program: ProgramGraphs, graph: Graph, target: fx.Node, tokens: torch.Tensor) -> torch.Tensor:
    batch, length = tokens.shape
    inputs = {"tokens": tokens, "positions": torch.arange(length).expand(batch, length)}
    values: dict[fx.Node, Any] = {}
    for node in _needed(graph, target):
        if node.op == "placeholder":
            port = node.meta["port"]
            values[node] = inputs[port.name] if port.kind == "input" else program.params[port.name].materialise()
        else:
            values[node] = evaluate(node, values.__getitem__)
    result = values[target]
    assert isinstance(result, torch.Tensor)
    return result
