"""Which rows go on in a recurrent sleep: those whose memories have not settled."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import onnx_ir as ir
import torch

from sleepc.backends.onnx.emit import Emitter
from sleepc.ir.types import TensorType


def where(e: Emitter, rows: ir.Value, new: ir.Value, old: ir.Value, dims: int) -> ir.Value:
    """`new`, of so many dimensions, in the rows (bool [B]), and `old` in the others."""
    return e("Where", e("Unsqueeze", rows, e.ints(*range(1, dims))), new, old)


def moves(
    e: Emitter, old: Sequence[ir.Value], new: Sequence[ir.Value], types: Sequence[TensorType], settle: float
) -> ir.Value:
    """Does |new - old| exceed `settle` |new|, over all numbers of a row? bool [B]"""
    wide = torch.promote_types(types[0].dtype, torch.float32)
    apart = [e("Sub", a, b) for a, b in zip(new, old, strict=True)]
    sizes = [
        reduce(lambda a, b: e("Add", a, b), [_squares(e, x, t) for x, t in zip(xs, types, strict=True)])
        for xs in (apart, new)
    ]
    return e("Greater", e("Sqrt", sizes[0]), e("Mul", e.const(settle, wide), e("Sqrt", sizes[1])))


def _squares(e: Emitter, x: ir.Value, type_: TensorType) -> ir.Value:
    """The sum of a row's squares [B]."""
    return e("ReduceSumSquare", x, e.ints(*range(1, len(type_.dims))), keepdims=0)
