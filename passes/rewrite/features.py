"""Feature maps of sleepc/memory/features.py as nodes of a graph."""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from sleepc.passes.lib.emit import Emit, aten


def featured(e: Emit, name: str, x: fx.Node) -> fx.Node:
    """Features of x [.., d], of unit length."""
    return e.ours("l2norm", _MAPS[name](e, x))


def _as_it_is(e: Emit, x: fx.Node) -> fx.Node:
    return x


def _elu(e: Emit, x: fx.Node) -> fx.Node:
    return e.call(aten.add.Scalar, e.call(aten.elu.default, x), 1)


def _dpfp(turns: int) -> Callable[[Emit, fx.Node], fx.Node]:
    def made(e: Emit, x: fx.Node) -> fx.Node:
        r = e.call(aten.relu.default, e.call(aten.cat.default, [x, e.neg(x)], -1))
        return e.call(aten.cat.default, [e.mul(r, _turned(e, r, j)) for j in range(1, turns + 1)], -1)

    return made


def _turned(e: Emit, r: fx.Node, by: int) -> fx.Node:
    """r with what stands `by` places later in its last dimension, which goes round."""
    first, rest = (e.call(aten.slice.Tensor, r, -1, *ends) for ends in ((0, by), (by, 1 << 62)))
    return e.call(aten.cat.default, [rest, first], -1)


_MAPS: dict[str, Callable[[Emit, fx.Node], fx.Node]] = {
    "unit": _as_it_is,
    "elu": _elu,
    **{f"dpfp{n}": _dpfp(n) for n in (1, 2, 3)},
}
