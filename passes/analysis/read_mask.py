"""Evaluate a mask on numbers, and say what it means: who sees whom, and what is added to the scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from sleepc.errors import Refusal
from sleepc.ir.graph import Graph
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.lib.values import evaluate

MASKED = -1e4


@dataclass(frozen=True)
class MaskClass:
    """What a query at i sees: keys j <= i; j > i - window where the window is not 0; where the chunk is not 0, only
    i // chunk = j // chunk. Head h takes slopes[h] (i - j) off its scores (ALiBi, arXiv 2108.12409).
    """

    window: int = 0
    chunk: int = 0
    slopes: tuple[float, ...] = ()
    bidirectional: bool = False

    def options(self) -> dict[str, Any]:
        """Keyword arguments of `sleepc::attention`."""
        return {"window": self.window, "chunk": self.chunk, "slopes": list(self.slopes)}


@dataclass(frozen=True)
class Grid:
    """A mask on numbers: seen bool [B,T,T]; bias [B,H,T,T] what is added to scores, less what a query adds to its own
    key's (softmax does not see a number that is added to all keys of a query), or None; `step` the rounding of the
    coarsest dtype that the bias was computed in, times its largest number.
    """

    seen: Tensor
    bias: Tensor | None = None
    step: float = 0.0

    def equals(self, other: Grid, size: int) -> bool:
        """Is every row of this the first row of `other`, for its first `size` tokens?"""
        same = bool((self.seen == other.seen[:1, :size, :size]).all())
        if self.bias is None or other.bias is None:
            return same and self.bias is other.bias
        return same and bool(((self.bias - other.bias[:1, :, :size, :size]).abs() <= other.step).all())


def evaluate_mask(program: ProgramGraphs, graph: Graph, mask: fx.Node, tokens: Tensor) -> Grid:
    """Run the mask's subgraph for tokens [B,T] at positions 0..T-1.

    Raises Refusal(UNKNOWN_MASK) where heads see different keys, or scores are not passed on as they are.
    """
    value, eps = _run_upto(program, graph, mask, tokens)
    while value.dim() < 4:
        value = value[None]
    length = tokens.shape[1]
    value = value.expand(*value.shape[:2], length, length)
    if value.is_floating_point() and bool(value.isnan().any()):
        raise Refusal(
            "UNKNOWN_MASK",
            "scores are multiplied with numbers other than 1 where a key is seen and 0 where it is hidden",
        )
    seen = value if value.dtype == torch.bool else value > MASKED
    if seen.shape[1] != 1 and not bool((seen == seen[:, :1]).all()):
        raise Refusal("UNKNOWN_MASK", "heads of one layer see different keys")
    if value.dtype == torch.bool or not bool(((value != 0) & seen).any()):
        return Grid(seen[:, 0])
    own = value.diagonal(dim1=2, dim2=3)[..., None]
    step = 2 * eps * float(torch.where(seen, value, 0).abs().max())
    return Grid(seen[:, 0], torch.where(seen, value.double() - own.double(), 0.0), step)


def classify(grid: Grid) -> MaskClass | None:
    """The class of a mask on one row; None for anything unknown."""
    seen = grid.seen[0]
    i = torch.arange(len(seen))
    causal = i[None] <= i[:, None]
    if bool((seen & ~causal).any()):
        return MaskClass(bidirectional=True)
    slopes = () if grid.bias is None else _slopes(grid.bias[0], grid)
    if slopes is None:
        return None
    window, chunk = int(seen[-1].sum()), int(seen[:, 0].sum())
    if bool((seen == causal).all()):
        return MaskClass(slopes=slopes)
    if window and bool((seen == (causal & (i[None] > i[:, None] - window))).all()):
        return MaskClass(window=window, slopes=slopes)
    if chunk and bool((seen == (causal & (i[None] // chunk == i[:, None] // chunk))).all()):
        return MaskClass(chunk=chunk, slopes=slopes)
    return None


def _slopes(bias: Tensor, grid: Grid) -> tuple[float, ...] | None:
    """The slope of every head of bias [H,T,T], None where one is no multiple of the distance."""
    found = [_slope(head, grid) for head in bias]
    return None if None in found else tuple(s for s in found if s is not None)


def _slope(bias: Tensor, grid: Grid) -> float | None:
    """Read off where rounding is least: next to the first or the last token, whichever fits all others."""
    i = torch.arange(len(bias))
    distance = (i[:, None] - i[None]).double()
    for at in (1, len(bias) - 1):
        slope = -float(bias[at, at - 1])
        gap = torch.where(grid.seen[0], bias + slope * distance, 0).abs().max()
        if float(gap) <= grid.step:
            return slope
    return None


def needed_for(graph: Graph, target: fx.Node) -> list[fx.Node]:
    """The nodes that `target` is computed from, and itself, in order."""
    needed = {target}
    for node in reversed(list(graph.fx.nodes)):
        if node in needed:
            needed.update(node.all_input_nodes)
    return [node for node in graph.fx.nodes if node in needed]


def value_of(program: ProgramGraphs, graph: Graph, target: fx.Node, tokens: Tensor) -> Tensor:
    """The value of `target` for tokens [B,T] at positions 0..T-1."""
    return _run_upto(program, graph, target, tokens)[0]


def _run_upto(program: ProgramGraphs, graph: Graph, target: fx.Node, tokens: Tensor) -> tuple[Tensor, float]:
    """The value of `target`, and the coarsest rounding on the way to it. Values are freed after their last use."""
    batch, length = tokens.shape
    inputs = {"tokens": tokens, "positions": torch.arange(length).expand(batch, length)}
    nodes = needed_for(graph, target)
    last = {source: node for node in nodes for source in node.all_input_nodes}
    values: dict[fx.Node, Any] = {}
    eps = 0.0
    for node in nodes:
        if node.op == "placeholder":
            port = node.meta["port"]
            values[node] = inputs[port.name] if port.kind == "input" else program.params[port.name].materialise()
            continue
        values[node] = evaluate(node, values.__getitem__)
        if isinstance(values[node], Tensor) and values[node].is_floating_point():
            eps = max(eps, torch.finfo(values[node].dtype).eps)
        for source in {s for s in node.all_input_nodes if last[s] is node}:
            del values[source]
    result = values[target]
    assert isinstance(result, Tensor)
    return result, eps
