"""Evaluate a mask on numbers, and say what it means: who sees whom, and what is added to the scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from sleepc.errors import Refusal
from sleepc.ir.interp import value_of
from sleepc.ir.program import ProgramGraphs
from sleepc.masks import Mask, read_mask
from sleepc.passes.lib.values import is_tensor, needed_for, val

MASKED = -1e4
# Seen structure ends here: a window wider than the grid looks like none, and is none for any KV window below it.
GRID = 8448
# A window or a chunk stands in the mask's code as a number; the grid goes that much further. If there is none, a
# large grid would only cost memory.
LEAST, MARGIN = 512, 256
NUMBERS = 2**31  # those beyond mean "to the end"


@dataclass(frozen=True)
class Meaning:
    """What attention's mask says: who sees whom; head h takes slopes[h] (i - j) off its scores (ALiBi, 2108.12409)."""

    mask: Mask
    slopes: tuple[float, ...]

    def options(self) -> dict[str, Any]:
        """Keyword arguments of `sleepc::attention`."""
        return {"sees": str(self.mask), "slopes": list(self.slopes)}


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


def evaluate_mask(program: ProgramGraphs, mask: fx.Node, tokens: Tensor) -> Grid:
    """Run the mask's subgraph for tokens [B,T] at positions 0..T-1.

    Raises Refusal(UNKNOWN_MASK) if heads see different keys, or scores are not passed on as they are.
    """
    value = at_positions(program, mask, tokens)
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
    step = 2 * _coarsest(mask) * float(torch.where(seen, value, 0).abs().max())
    return Grid(seen[:, 0], torch.where(seen, value.double() - own.double(), 0.0), step)


def looks_ahead(grid: Grid) -> bool:
    """Does a query of one row see a later key?"""
    return bool(grid.seen[0].triu(1).any())


def classify(grid: Grid) -> Meaning | None:
    """What a mask on one row means, if no query looks ahead; None for anything unknown."""
    mask = read_mask(grid.seen[0])
    slopes = () if grid.bias is None else _slopes(grid.bias[0], grid)
    return None if mask is None or slopes is None else Meaning(mask, slopes)


def _slopes(bias: Tensor, grid: Grid) -> tuple[float, ...] | None:
    """The slope of every head of bias [H,T,T], None if one is not a multiple of the distance."""
    found = [_slope(head, grid) for head in bias]
    return None if None in found else tuple(s for s in found if s is not None)


def _slope(bias: Tensor, grid: Grid) -> float | None:
    """Read off where rounding is smallest: next to the first or the last token, whichever fits all others."""
    i = torch.arange(len(bias))
    distance = (i[:, None] - i[None]).double()
    for at in (1, len(bias) - 1):
        slope = -float(bias[at, at - 1])
        gap = torch.where(grid.seen[0], bias + slope * distance, 0).abs().max()
        if float(gap) <= grid.step:
            return slope
    return None


def at_positions(program: ProgramGraphs, target: fx.Node, tokens: Tensor) -> Tensor:
    """The value of `target`, a node of a flat graph, for tokens [B,T] at positions 0..T-1."""
    batch, length = tokens.shape
    inputs = {"tokens": tokens, "positions": torch.arange(length).expand(batch, length)}

    def given(node: fx.Node) -> Any:
        if node.op != "placeholder":
            return NotImplemented
        port = node.meta["port"]
        return inputs[port.name] if port.kind == "input" else program.params[port.name].materialise()

    value: Tensor = value_of(target, given)
    return value


def _coarsest(target: fx.Node) -> float:
    """The rounding of the coarsest dtype on the way to `target`, relative to a number."""
    calls = [node for node in needed_for(target) if node.op == "call_function" and is_tensor(node)]
    return max((torch.finfo(val(n).dtype).eps for n in calls if val(n).is_floating_point()), default=0.0)


def grid_size(program: ProgramGraphs, mask: fx.Node) -> int:
    """Tokens enough to see what a mask does, by the largest number among its operators' arguments and constants."""
    numbers: list[int] = []

    def note(argument: Any) -> None:
        if type(argument) is int:
            numbers.append(argument)

    for node in needed_for(mask):
        fx.node.map_aggregate((node.args, dict(node.kwargs)), note)
        if node.op == "placeholder" and node.meta["port"].kind != "input":
            value = program.params[node.meta["port"].name].materialise()
            if value.numel() > LEAST:
                return GRID  # a table of masks
            numbers += [int(x) for x in value.flatten().tolist() if abs(x) < NUMBERS]
    return min(GRID, max(LEAST, MARGIN + max((abs(n) for n in numbers if abs(n) < NUMBERS), default=0)))
