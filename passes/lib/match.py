"""Small questions about calls of a program, for patterns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import fx

from sleepc.ir.graph import is_call
from sleepc.ir.levels import aten
from sleepc.ir.types import TensorType


def through(node: Any) -> Any:
    """What a value is, looking through copies and casts to the dtype that it has."""
    while is_call(node, aten.clone.default, aten.contiguous.default) or _is_idle_cast(node):
        node = node.args[0]
    return node


def _is_idle_cast(node: Any) -> bool:
    if not is_call(node, aten.to.dtype, aten._to_copy.default):
        return False
    source, type_ = node.args[0].meta["type"], node.meta["type"]
    return isinstance(type_, TensorType) and isinstance(source, TensorType) and source.dtype == type_.dtype


def factors(node: fx.Node) -> Iterator[tuple[Any, Any]]:
    """The two sides of a call that does not care for their order, both ways; none of one with a factor (alpha)."""
    if node.kwargs or len(node.args) > 2:
        return
    a, b = node.args[:2]
    yield a, b
    yield b, a


def constant(value: Any) -> float | None:
    """A number that stands in the program; None for anything else."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def normed(node: Any) -> tuple[fx.Node, float] | None:
    """x and eps of x * rsqrt(mean(x^2, -1) + eps)."""
    if not is_call(node, aten.mul.Tensor):
        return None
    for x, root in factors(node):
        total: Any = root.args[0] if is_call(root, aten.rsqrt.default) else None
        if not is_call(total, aten.add.Tensor):
            continue
        mean, epsilon = total.args[0], constant(total.args[1])
        if epsilon is None or not is_call(mean, aten.mean.dim) or mean.args[1:] != ([-1], True):
            continue
        square = mean.args[0]
        if is_call(square, aten.pow.Tensor_Scalar) and square.args[1] == 2 and through(square.args[0]) is through(x):
            return through(x), epsilon
    return None
