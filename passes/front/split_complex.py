"""Complex numbers become pairs of real ones, in a last dimension of 2: the program knows no complex type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import fx

from sleepc.errors import Refusal
from sleepc.ir.graph import Graph, is_call
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.base import Effect, Pass
from sleepc.passes.facts import FLAT, FUNCTIONAL, Fact
from sleepc.passes.lib.emit import aten
from sleepc.passes.lib.values import FlatEmit, is_tensor, val

SAME_PLACE = (aten.slice.Tensor, aten.unsqueeze.default, aten.select.int)  # (x, dim, ..)
RESIZING = (aten.view.default, aten.reshape.default, aten.expand.default, aten._unsafe_view.default)  # (x, sizes)
COPIES = (aten.clone.default, aten.alias.default, aten.contiguous.default)


@dataclass(frozen=True)
class SplitComplex(Pass):
    """Replace every complex value of a flat graph by its pair [.., 2].

    Raises Refusal(OPERATOR) for an operator on complex numbers that is not known.
    """

    name: ClassVar[str] = "split-complex"
    effect: ClassVar[Effect] = "ROUNDING"
    requires: ClassVar[tuple[Fact, ...]] = (FLAT, FUNCTIONAL)

    def run(self, program: ProgramGraphs) -> int:
        """The number of operators replaced."""
        return _split(program.embed)


def _split(graph: Graph) -> int:
    pairs: dict[fx.Node, fx.Node] = {}
    for node in graph.calls():
        if is_tensor(node) and val(node).is_complex():
            pairs[node] = _pair(_Pairs(graph, str(node.meta.get("source", "")), node), node, pairs)
        elif is_call(node, aten.view_as_real.default):
            node.replace_all_uses_with(pairs[node.all_input_nodes[0]])
        elif pairs.keys() & set(node.all_input_nodes):
            raise _refusal(node)
    if pairs:
        graph.drop_dead()
    return len(pairs)


class _Pairs(FlatEmit):
    """Emit with words for pairs."""

    def stack(self, real: fx.Node, imaginary: fx.Node) -> fx.Node:
        """The pair of two parts."""
        return self.call(aten.stack.default, [real, imaginary], -1)

    def parts(self, pair: fx.Node) -> tuple[fx.Node, fx.Node]:
        """The parts of a pair."""
        return self.call(aten.select.int, pair, -1, 0), self.call(aten.select.int, pair, -1, 1)


def _pair(e: _Pairs, node: fx.Node, pairs: dict[fx.Node, fx.Node]) -> fx.Node:
    make = MADE_OF_REALS.get(node.target)
    if make is not None:
        return make(e, *node.args)
    source = node.args[0]
    assert isinstance(source, fx.Node)
    if is_call(node, aten.mul.Tensor):
        return _product(e, node.args[0], node.args[1], pairs)
    if is_call(node, *COPIES):
        return pairs[source]
    if is_call(node, *RESIZING):
        sizes: Any = node.args[1]
        return e.call(node.target, pairs[source], [*sizes, 2])
    if is_call(node, *SAME_PLACE):
        dim: Any = node.args[1]
        return e.call(node.target, pairs[source], dim - (dim < 0), *node.args[2:])
    raise _refusal(node)


def _product(e: _Pairs, a: Any, b: Any, pairs: dict[fx.Node, fx.Node]) -> fx.Node:
    """(x + iy)(u + iv) = xu - yv + i(xv + yu); a factor may be real."""
    if a not in pairs:
        a, b = b, a
    if not isinstance(b, fx.Node):
        return e.mul(pairs[a], b)
    if b not in pairs:
        return e.mul(pairs[a], e.unsqueeze(b, -1))
    (x, y), (u, v) = e.parts(pairs[a]), e.parts(pairs[b])
    return e.stack(e.sub(e.mul(x, u), e.mul(y, v)), e.add(e.mul(x, v), e.mul(y, u)))


def _polar(e: _Pairs, size: fx.Node, angle: fx.Node) -> fx.Node:
    return e.stack(e.mul(size, e.call(aten.cos.default, angle)), e.mul(size, e.call(aten.sin.default, angle)))


MADE_OF_REALS: dict[Any, Callable[..., fx.Node]] = {
    aten.view_as_complex.default: lambda e, pair: pair,
    aten.complex.default: lambda e, real, imaginary: e.stack(real, imaginary),
    aten.polar.default: _polar,
}


def _refusal(node: fx.Node) -> Refusal:
    return Refusal(
        "OPERATOR",
        f"complex numbers pass through {node.target}, which sleepc does not know",
        where=str(node.meta.get("source", "")),
        fix="Please report the model.",
    )
