"""Rotary positions, found where they are spelled out: x cos + rotated(x) sin (Su et al., arXiv 2104.09864)."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from torch import fx

from sleepc.backends.onnx.call import Call, aten, fuses
from sleepc.ir.graph import is_call
from sleepc.passes.lib.match import factors, through

POINTWISE = ("Cos", "Sin", "Mul", "Cast", "Identity")


@fuses(aten.add.Tensor)
def rotary(c: Call) -> ir.Value | None:
    """x [B, H, T, D] cos + cat(-x2, x1) sin, where cos and sin [B, 1, T, D] repeat their first half."""
    for first, second in factors(c.node):
        found = _parts(first, second)
        if found is None:
            continue
        x, cos, sin = found
        tables = [_half(c, table) for table in (cos, sin)]
        if None not in tables:
            return c.e("RotaryEmbedding", c.value(x), *tables)
    return None


def _parts(first: Any, second: Any) -> tuple[fx.Node, fx.Node, fx.Node] | None:
    """x, cos, sin of first = x cos, second = rotated(x) sin."""
    if not is_call(first, aten.mul.Tensor) or not is_call(second, aten.mul.Tensor):
        return None
    for x, cos in factors(first):
        for rotated, sin in factors(second):
            x = through(x)
            if _is_rotation(through(rotated), x) and len(x.meta["type"].dims) == 4:
                return x, through(cos), through(sin)
    return None


def _is_rotation(node: Any, x: Any) -> bool:
    """Is it cat(-x2, x1), x1 and x2 being the halves of x?"""
    if not is_call(node, aten.cat.default) or len(node.args[0]) != 2:
        return False
    if (node.args[1] if len(node.args) > 1 else 0) not in (-1, 3):
        return False
    minus, low = node.args[0]
    if not is_call(minus, aten.neg.default):
        return False
    high, half = minus.args[0], x.meta["type"].dims[-1] // 2
    return _is_slice(low, x, 0, half) and _is_slice(high, x, half, 2 * half)


def _is_slice(node: Any, x: Any, start: int, end: int) -> bool:
    if not is_call(node, aten.slice.Tensor) or through(node.args[0]) is not x or node.args[1] not in (3, -1):
        return False
    first, last = node.args[2] or 0, node.args[3]
    return len(node.args) == 4 and first == start and min(last, end) == end and last >= end


def _half(c: Call, table: fx.Node) -> ir.Value | None:
    """cos or sin [B, 1, T, D] -> its first half [B, T, D/2], if the second is the same."""
    if not is_call(table, aten.unsqueeze.default) or table.args[1] not in (1, -3):
        return None
    whole = c.value(table.args[0])  # type: ignore[arg-type]
    if len(table.meta["type"].dims) != 4 or not _repeats(whole):
        return None
    width = int(table.meta["type"].dims[-1])
    ends = (c.e.ints(0), c.e.ints(width // 2), c.e.ints(2))
    return c.e.once(("half", whole.name), lambda: c.e("Slice", whole, *ends))


def _repeats(value: ir.Value) -> bool:
    """Does the last dimension hold the same numbers twice? So it does where it is made by functions of single numbers
    from a value put beside itself.
    """
    node = value.producer()
    while node is not None and node.op_type in POINTWISE:
        rest = [v for v in node.inputs[1:] if v is not None]
        if any(v.const_value is None or v.const_value.size != 1 for v in rest):
            return False
        inner = node.inputs[0]
        node = inner.producer() if inner is not None else None
    if node is None or node.op_type != "Concat" or node.attributes["axis"].as_int() not in (-1, 2):
        return False
    return len(node.inputs) == 2 and node.inputs[0] is node.inputs[1]
