"""PyTorch's rounding, remainders and bits, in plain ONNX operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch

from sleepc.backends.onnx.call import Call, aten, translates
from sleepc.backends.onnx.emit import Emitter


def _rounding(op: str) -> Callable[[Call], ir.Value]:
    """Integers are what they are."""

    def translate(c: Call) -> ir.Value:
        return c.e(op, c.tensor(0)) if c.out.dtype.is_floating_point else c.tensor(0)

    return translate


for _op, _target in {"Floor": aten.floor.default, "Ceil": aten.ceil.default, "Round": aten.round.default}.items():
    translates(_target)(_rounding(_op))


def _truncated(e: Emitter, x: ir.Value) -> ir.Value:
    return e("Mul", e("Sign", x), e("Floor", e("Abs", x)))


@translates(aten.trunc.default)
def trunc(c: Call) -> ir.Value:
    """x rounded towards 0."""
    return _truncated(c.e, c.tensor(0)) if c.out.dtype.is_floating_point else c.tensor(0)


@translates(aten.frac.default)
def frac(c: Call) -> ir.Value:
    """What is left of x then."""
    return c.e("Sub", c.tensor(0), _truncated(c.e, c.tensor(0)))


def _sides(c: Call) -> tuple[ir.Value, ir.Value]:
    return c.tensor(0, c.out.dtype), c.tensor(1, c.out.dtype)


def _quotient(c: Call, mode: Any) -> ir.Value:
    """a / b, rounded down or towards 0."""
    a, b = _sides(c)
    if c.out.dtype.is_floating_point:
        found = c.e("Div", a, b)
        return {"floor": c.e("Floor", found), "trunc": _truncated(c.e, found)}.get(mode, found)
    if mode == "floor":  # ONNX divides integers towards 0
        a = c.e("Sub", a, c.e("Mod", a, b))
    return c.e("Div", a, b)


@translates(aten.div.Tensor_mode, aten.div.Scalar_mode)
def divide(c: Call) -> ir.Value:
    """a / b, rounded as `rounding_mode` says."""
    return _quotient(c, c.raw("rounding_mode"))


@translates(aten.floor_divide.default, aten.floor_divide.Scalar)
def floor_divide(c: Call) -> ir.Value:
    """a / b rounded down."""
    return _quotient(c, "floor")


@translates(aten.remainder.Tensor, aten.remainder.Scalar, aten.remainder.Scalar_Tensor)
def remainder(c: Call) -> ir.Value:
    """What is left of a, with the sign of b."""
    a, b = _sides(c)
    if not c.out.dtype.is_floating_point:
        return c.e("Mod", a, b)
    return c.e("Sub", a, c.e("Mul", c.e("Floor", c.e("Div", a, b)), b))


@translates(aten.fmod.Tensor, aten.fmod.Scalar)
def fmod(c: Call) -> ir.Value:
    """What is left of a, with the sign of a."""
    return c.e("Mod", *_sides(c), fmod=1)


def _bits(op: str) -> Callable[[Call], ir.Value]:
    """Of integers, or of booleans."""

    def translate(c: Call) -> ir.Value:
        sides = [c.tensor(i, c.out.dtype) for i in range(len(c.node.args))]
        return c.e(op if c.out.dtype == torch.bool else f"Bitwise{op}", *sides)

    return translate


for _op, _targets in {
    "And": (aten.bitwise_and.Tensor, aten.bitwise_and.Scalar),
    "Or": (aten.bitwise_or.Tensor, aten.bitwise_or.Scalar),
    "Xor": (aten.bitwise_xor.Tensor, aten.bitwise_xor.Scalar),
    "Not": (aten.bitwise_not.default,),
}.items():
    translates(*_targets)(_bits(_op))
