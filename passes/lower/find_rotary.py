"""Rotary positions, found where they are spelled out: x cos + rotated(x) sin becomes one call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import fx

from sleepc.ir.graph import Graph, is_call
from sleepc.ir.infer import infer_types
from sleepc.ir.levels import aten
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.analysis.givers import givers, origin
from sleepc.passes.base import Effect, Pass
from sleepc.passes.facts import SLEEPS, Fact
from sleepc.passes.lib.emit import Emit
from sleepc.passes.lib.match import factors, through

MULTIPLY = (aten.mul.Tensor, aten.mul.Scalar)
POINTWISE = (aten.cos.default, aten.sin.default, aten.to.dtype, aten._to_copy.default)


@dataclass(frozen=True)
class FindRotary(Pass):
    """`sleepc.rotary` (Su et al., arXiv 2104.09864) for heads [B,H,T,D] whose halves are turned by the same angles."""

    name: ClassVar[str] = "find-rotary"
    effect: ClassVar[Effect] = "EXACT"
    requires: ClassVar[tuple[Fact, ...]] = (SLEEPS,)

    def run(self, program: ProgramGraphs) -> int:
        """The number of turns found."""
        return sum(_find(graph, giver) for graph, giver in givers(program))


def _find(graph: Graph, giver: Graph | None) -> int:
    count = 0
    for node in graph.calls():
        found = _parts(node) if is_call(node, aten.add.Tensor) else None
        if found is None or not all(_repeats(table, giver) for table in found[1:]):
            continue
        emit = Emit(graph, node.meta.get("source", ""), node)
        node.replace_all_uses_with(emit.ours("rotary", *found))
        count += 1
    if count:
        graph.drop_dead()
        infer_types(graph)
    return count


def _parts(node: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node] | None:
    """x [B,H,T,D], cos and sin [B,T,D] of x cos + cat(-x2, x1) sin, x1 and x2 being the halves of x."""
    for first, second in factors(node):
        if not is_call(first, aten.mul.Tensor) or not is_call(second, aten.mul.Tensor):
            return None
        for source, cos in factors(first):
            for rotated, sin in factors(second):
                x, tables = through(source), (_table(cos, node), _table(sin, node))
                if tables[0] is not None and tables[1] is not None and _is_rotation(through(rotated), x):
                    return x, *tables  # type: ignore[return-value]  # of two
    return None


def _table(value: Any, like: fx.Node) -> fx.Node | None:
    """The table [B,T,D] that stands in a product with heads [B,H,T,D] of the dtype, as one for all heads."""
    value = through(value)
    if not is_call(value, aten.unsqueeze.default) or value.args[1] not in (1, -3):
        return None
    table, heads = value.args[0], like.meta["type"]
    type_ = table.meta["type"]
    fits = len(heads.dims) == 4 and type_.dims == (heads.dims[0], *heads.dims[2:]) and type_.dtype == heads.dtype
    return table if fits else None


def _is_rotation(node: Any, x: Any) -> bool:
    """Is it cat(-x2, x1), of one dtype with x?"""
    if not is_call(node, aten.cat.default) or len(node.args[0]) != 2 or not isinstance(x, fx.Node):
        return False
    if (node.args[1] if len(node.args) > 1 else 0) not in (-1, 3) or node.meta["type"] != x.meta["type"]:
        return False
    minus, low = node.args[0]
    if not is_call(minus, aten.neg.default):
        return False
    high, width = minus.args[0], x.meta["type"].dims[-1]
    if not isinstance(width, int):
        return False
    return _is_slice(low, x, 0, width // 2) and _is_slice(high, x, width // 2, width)


def _is_slice(node: Any, x: Any, start: int, end: int) -> bool:
    """Is it x[..., start:end]? The end may be past the last."""
    if not is_call(node, aten.slice.Tensor) or len(node.args) != 4 or through(node.args[0]) is not x:
        return False
    axis, first, last = node.args[1:]
    whole = isinstance(last, int) and (last == end or (last > end == x.meta["type"].dims[-1]))
    return axis in (3, -1) and (first or 0) == start and whole


def _repeats(table: fx.Node, giver: Graph | None) -> bool:
    """Does the last dimension hold the same numbers twice? It does if it is made, number by number, from a value
    joined to itself.
    """
    node: Any = origin(through(table), giver)
    while is_call(node, *POINTWISE, *MULTIPLY):
        side = _scaled(node) if is_call(node, *MULTIPLY) else node.args[0]
        if side is None:
            return False
        node = origin(through(side), giver)
    if not is_call(node, aten.cat.default) or len(node.args[0]) != 2:
        return False
    halves, axis = node.args[0], node.args[1] if len(node.args) > 1 else 0
    return axis in (-1, len(node.meta["type"].dims) - 1) and halves[0] is halves[1]


def _scaled(product: fx.Node) -> Any:
    """The side of a product that is a tensor, if the other is a number or has one along the last dimension."""
    for value, factor in factors(product):
        dims = factor.meta["type"].dims if isinstance(factor, fx.Node) else ()
        if isinstance(value, fx.Node) and (not dims or dims[-1] == 1):
            return value
    return None
