"""Weights in few bits as kernels take them. Scales of packed ones are nodes over the small numbers that the file has of
them, from which a runtime makes floats once, when it opens the file.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
import torch

from sleepc.backends.onnx.emit import Emitter
from sleepc.backends.onnx.quantise import BLOCK
from sleepc.backends.onnx.weights import Form, Keys


@dataclass(frozen=True)
class FewBits:
    """(numbers - 2^(bits - 1)) * scale + low, the latter two f32 [out, groups] of `group` numbers each; None is 0."""

    numbers: ir.Value
    scale: ir.Value
    low: ir.Value | None
    bits: int
    group: int


def few_bits(e: Emitter, keys: Keys, form: Form, *, rows: bool = False) -> FewBits:
    """A weight in a form of few bits. Its numbers are [out, groups, bytes] or, as `rows`, [out, bytes]."""
    numbers = e.weight(keys, f"{form}.rows" if rows else form)
    if form != "packed":
        return FewBits(numbers, e.weight(keys, f"{form}.scales"), None, int(form[3]), BLOCK)
    how = e.weights.packing(keys)
    assert how is not None
    with e.outermost():
        scale = _floats(e, keys, "scales", "steps")
        low = None
        if "lows" in e.weights.packed(keys).parts():
            low = e("Add", _floats(e, keys, "lows", "low_steps"), e("Mul", scale, e.const(float(how.raised))))
    return FewBits(numbers, scale, low, how.bits, how.group)


def _floats(e: Emitter, keys: Keys, values: str, steps: str) -> ir.Value:
    """What has a value for several groups, times the step of each: [out, groups]."""
    weight = e.weights.packed(keys)
    parts, groups = weight.parts(), weight.scale.shape[1]
    found, n = e.cast(e.weight(keys, f"packed.{values}"), torch.float32), parts[values].shape[1]
    if steps not in parts:
        return found
    each = e("Reshape", e.cast(e.weight(keys, f"packed.{steps}"), torch.float32), e.ints(0, n, groups // n))
    return e("Reshape", e("Mul", e("Unsqueeze", found, e.ints(2)), each), e.ints(0, groups))
