"""Evaluate every mask on a concrete grid, and keep what it means instead of how it was computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from sleepc.errors import Refusal
from sleepc.ir.graph import is_call
from sleepc.ir.program import ProgramGraphs
from sleepc.masks import KINDS, nearest
from sleepc.passes.analysis.read_mask import GRID, Grid, Meaning, classify, evaluate_mask, grid_size, looks_ahead
from sleepc.passes.base import Effect, Pass
from sleepc.passes.facts import FLAT, FUNCTIONAL, REAL, Fact

SMALL = 24


@dataclass(frozen=True)
class ClassifyMasks(Pass):
    """Replace each attention's mask tensor by `causal=True` and what else it says: a mask (sleepc/masks) and slopes.

    The mask's subgraph runs on numbers: on one row of up to GRID tokens, and on small batches of different tokens,
    in which it must not change. A mask of fixed size limits the model's positions. Raises Refusal: BIDIRECTIONAL if a
    query sees later keys, UNKNOWN_MASK for anything else that is not recognised.
    """

    name: ClassVar[str] = "classify-masks"
    effect: ClassVar[Effect] = "ROUNDING"
    requires: ClassVar[tuple[Fact, ...]] = (FLAT, FUNCTIONAL, REAL)

    def run(self, program: ProgramGraphs) -> int:
        """The number of masks replaced."""
        graph = program.embed
        sites = [n for n in graph.calls() if is_call(n, torch.ops.sleepc.attention.default)]
        known: dict[fx.Node, Meaning | None] = {}
        limit = program.max_positions
        bidirectional = [n for n in sites if n.args[3] is None and not n.kwargs.get("causal")]
        count = 0
        for node in sites:
            mask = node.args[3]
            if not isinstance(mask, fx.Node):
                continue
            if mask not in known:
                known[mask], limit = _classify(program, mask, limit, node.meta.get("source", ""))
            meaning = known[mask]
            if meaning is None:
                bidirectional.append(node)
                continue
            # Every argument is spelled out, since export leaves out those at their default.
            node.args = (*node.args[:3], None, node.args[4] if len(node.args) > 4 else None, *node.args[5:])
            node.kwargs = {"softcap": 0.0, **node.kwargs, "causal": True, **meaning.options()}
            count += 1
        if bidirectional:
            raise _bidirectional(len(bidirectional), len(sites))
        graph.drop_dead()
        program.max_positions = limit
        return count


def _bidirectional(count: int, total: int) -> Refusal:
    every = "all" if count == total else f"{count} of"
    return Refusal(
        "BIDIRECTIONAL",
        f"nothing to convert: {every} {total} attention layers are bidirectional, "
        "and a memory can only be built for causal attention",
        fix="sleepc converts decoder-only language models. `sleepc inspect MODEL` shows what it sees.",
    )


def _classify(
    program: ProgramGraphs, mask: fx.Node, limit: int | None, where: str
) -> tuple[Meaning | None, int | None]:
    """What a mask means (None: queries look ahead), and how many positions a model has that has this mask and no more
    than `limit`.
    """
    wished = min(grid_size(program, mask), limit or GRID)
    grid = _largest(program, mask, wished, where)
    size = grid.seen.shape[-1]
    if looks_ahead(grid):
        return None, limit
    result = classify(grid)
    if result is None:
        known = f"Known kinds: {', '.join(KINDS)}."
        raise Refusal("UNKNOWN_MASK", f"a mask is of no known kind{_near(grid)}", where=where, fix=known)
    small = min(SMALL, size)
    tokens = torch.arange(3 * small).reshape(3, small) % max(program.vocab, 1)
    if not evaluate_mask(program, mask, tokens).equals(grid, small):
        raise Refusal("UNKNOWN_MASK", "a mask depends on the tokens or on the length of the call", where=where)
    return result, limit if size == wished else size


def _near(grid: Grid) -> str:
    """What it is nearest to, in words."""
    found = nearest(grid.seen[0])
    if found is None:
        return ", and its bias does not grow with distance"
    mask, query, key = found
    return (
        f": nearest is {mask.words()}, but token {query} {'sees' if grid.seen[0, query, key] else 'does not see'} {key}"
    )


def _largest(program: ProgramGraphs, mask: fx.Node, size: int, where: str) -> Grid:
    """The mask on one row of `size` tokens; of as many as it can be made for, if it was written down for fewer."""

    def attempt(length: int) -> Grid | None:
        try:
            return evaluate_mask(program, mask, torch.zeros(1, length, dtype=torch.int64))
        except (RuntimeError, IndexError):  # sizes that do not fit
            return None

    found = attempt(size)
    if found is not None:
        return found
    works, fails = 1, size
    while fails - works > 1:
        middle = (works + fails) // 2
        works, fails = (middle, fails) if attempt(middle) is not None else (works, middle)
    found = attempt(works)
    if found is None or works < SMALL // 2:
        raise Refusal("UNKNOWN_MASK", f"a mask cannot be made for {size} tokens", where=where)
    return found
