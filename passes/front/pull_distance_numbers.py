"""Numbers that a query adds to the scores of keys by their distance are kept by distance, and not by key."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from sleepc.ir.graph import is_call
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.analysis.dependence import find_dependence
from sleepc.passes.analysis.read_mask import MARGIN, MASKED, at_positions, grid_size
from sleepc.passes.base import Effect, Pass
from sleepc.passes.facts import FLAT, FUNCTIONAL, REAL, Fact
from sleepc.passes.lib.emit import aten
from sleepc.passes.lib.values import FlatEmit, shape_text, val

NONE = -1  # stands for the place of a number that is 0


@dataclass(frozen=True)
class PullDistanceNumbers(Pass):
    """attention(q, k, v, mask), mask = gather(numbers, index) where a key is seen, numbers [B,Hq,T,R] made of the
    tokens and index of nothing but distances -> attention(q, k, v, seen, by_distance=numbers) (Inkling's position
    bias).

    On the way from the numbers to the mask may be casts, zeros beyond a distance, and factors of a query.
    """

    name: ClassVar[str] = "pull-distance-numbers"
    effect: ClassVar[Effect] = "ROUNDING"
    requires: ClassVar[tuple[Fact, ...]] = (FLAT, FUNCTIONAL, REAL)

    def run(self, program: ProgramGraphs) -> int:
        """The number of attention operations whose numbers were found; others are left as they are."""
        graph, count = program.embed, 0
        tokens = find_dependence(graph, ("tokens",), ("positions",)).tokens
        for node in [n for n in graph.calls() if is_call(n, torch.ops.sleepc.attention.default)]:
            mask: Any = node.args[3]
            if mask not in tokens or not is_call(mask, aten.where.ScalarOther) or mask.args[2] > MASKED:
                continue
            seen, bias, _ = mask.args
            way = _way_back(bias, tokens) if seen not in tokens else None
            columns = _columns(program, way) if way else None
            if way is not None and columns is not None:
                e = FlatEmit(graph, str(node.meta.get("source", "")), node)
                sinks = node.args[4] if len(node.args) > 4 else None
                node.args = (*node.args[:3], seen, sinks, way.numbers_by(e, columns))
                count += 1
        graph.drop_dead()
        return count


@dataclass
class _Way:
    """From the numbers [B,Hq,T,R] to what is added to scores [B,Hq,T,T]: which of them, where zeros are put instead,
    and what is done to each, the last first: an operator and its second argument.
    """

    numbers: Any = None
    index: Any = None
    zeros: list[fx.Node] = field(default_factory=list)
    steps: list[tuple[Any, Any]] = field(default_factory=list)

    def numbers_by(self, e: FlatEmit, columns: Tensor) -> fx.Node:
        """The numbers by distance, the last for all beyond."""
        count = len(columns) - int(columns[-1] == NONE)
        made: fx.Node = self.numbers
        if count < int(val(made).shape[3]):
            made = e.call(aten.slice.Tensor, made, 3, 0, count)
        if count < len(columns):
            made = e.call(aten.constant_pad_nd.default, made, [0, 1])
        for target, by in reversed(self.steps):
            made = e.call(target, made, by)
        return made


def _way_back(node: Any, tokens: frozenset[fx.Node]) -> _Way | None:
    way = _Way()
    while not is_call(node, aten.gather.default):
        if is_call(node, aten.to.dtype) or (
            is_call(node, aten.mul.Tensor, aten.div.Tensor) and node.args[1] not in tokens and _of_query(node.args[1])
        ):
            way.steps.append((node.target, node.args[1]))
        elif is_call(node, aten.masked_fill.Scalar) and node.args[2] == 0 and node.args[1] not in tokens:
            way.zeros.append(node.args[1])
        else:
            return None
        node = node.args[0]
    way.numbers, dim, way.index = node.args[:3]
    last = len(shape_text(node)) - 1
    plain = last == 3 and dim in (last, -1) and way.index not in tokens and not node.kwargs
    return way if plain and isinstance(val(way.numbers).shape[3], int) else None


def _of_query(by: Any) -> bool:
    """Is it the same for all keys of a query?"""
    return not isinstance(by, fx.Node) or shape_text(by)[-1:] in ((), ("1",))


def _columns(program: ProgramGraphs, way: _Way) -> Tensor | None:
    """Which of the numbers is added at distance 0, 1, .., NONE for 0, up to one that stands for all beyond; None if
    more than the distance decides, or they stand in another order.
    """
    size = max(grid_size(program, each) for each in (way.index, *way.zeros))
    row, at = torch.zeros(1, size, dtype=torch.int64), torch.arange(size)
    places = at_positions(program, way.index, row)
    if places.stride(1) != 0 and not bool((places == places[:, :1]).all()):
        return None
    places = places[0, 0].expand(size, size)
    for zeros in way.zeros:
        hidden = at_positions(program, zeros, row)
        if hidden.numel() != size * size:
            return None
        places = places.masked_fill(hidden.reshape(size, size), NONE)
    distance = at[:, None] - at
    by_distance = places[-1].flip(0)
    if not bool(((by_distance[distance.clamp(min=0)] == places) | (distance < 0)).all()):
        return None
    others = (by_distance != by_distance[-1]).nonzero()
    count = int(others[-1]) + 1 if len(others) else 0
    columns = by_distance[: count + 1]
    in_order = torch.equal(columns[:count], at[:count]) and int(columns[-1]) in (NONE, count)
    return columns if in_order and count <= size - MARGIN // 2 else None
