"""PyTorch's arithmetic, functions and comparisons, in plain ONNX operators."""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx_ir as ir
import torch
from torch import fx

from sleepc.backends.onnx.call import Call, aten, fuses, translates
from sleepc.backends.onnx.emit import declare, is_constant
from sleepc.ir.graph import is_call
from sleepc.ir.types import TensorType
from sleepc.passes.lib.match import factors

LOGIC = {"Add": "Or", "Max": "Or", "Mul": "And", "Min": "And"}


def _binary(op: str) -> Callable[[Call], ir.Value]:
    """Both sides in the result's dtype, as PyTorch promotes them; the second times `alpha` if there is one."""

    def translate(c: Call) -> ir.Value:
        dtype, alpha = c.out.dtype, c.option(2, "alpha", 1)
        a, b = c.tensor(0, dtype), c.tensor(1, dtype)
        if dtype == torch.bool:
            return c.e(LOGIC[op], a, b)
        return c.e(op, a, b if alpha == 1 else c.e("Mul", b, c.e.const(alpha, dtype)))

    return translate


for _op, _targets in {
    "Add": (aten.add.Tensor, aten.add.Scalar),
    "Sub": (aten.sub.Tensor, aten.sub.Scalar, aten.subtract.Tensor),
    "Mul": (aten.mul.Tensor, aten.mul.Scalar, aten.multiply.Tensor),
    "Div": (aten.div.Tensor, aten.div.Scalar, aten.divide.Tensor, aten.true_divide.Tensor),
    "Max": (aten.maximum.default, aten.max.other),
    "Min": (aten.minimum.default, aten.min.other),
    "Pow": (aten.pow.Tensor_Tensor, aten.pow.Scalar),
}.items():
    translates(*_targets)(_binary(_op))


@translates(aten.rsub.Tensor, aten.rsub.Scalar)
def reversed_difference(c: Call) -> ir.Value:
    """b - alpha a."""
    dtype, alpha = c.out.dtype, c.option(2, "alpha", 1)
    a, b = c.tensor(0, dtype), c.tensor(1, dtype)
    return c.e("Sub", b, a if alpha == 1 else c.e("Mul", a, c.e.const(alpha, dtype)))


def _comparison(op: str, *, opposite: bool = False) -> Callable[[Call], ir.Value]:
    """Both sides in the dtype that PyTorch compares them in; booleans, of which ONNX only has `Equal`, as numbers."""

    def translate(c: Call) -> ir.Value:
        wide, other = c.type(0).dtype, c.node.args[1]
        if isinstance(other, fx.Node) and isinstance(other.meta["type"], TensorType):
            wide = torch.promote_types(wide, c.type(1).dtype)
        elif isinstance(other, float) and not wide.is_floating_point:
            wide = torch.float32
        elif not isinstance(other, bool) and wide == torch.bool:
            wide = torch.int64
        wide = torch.int32 if wide == torch.bool and op != "Equal" else wide
        found = c.e(op, c.tensor(0, wide), c.tensor(1, wide))
        return c.e("Not", found) if opposite else found

    return translate


for _op, _targets in {
    "Less": (aten.lt.Tensor, aten.lt.Scalar),
    "LessOrEqual": (aten.le.Tensor, aten.le.Scalar),
    "Greater": (aten.gt.Tensor, aten.gt.Scalar),
    "GreaterOrEqual": (aten.ge.Tensor, aten.ge.Scalar),
    "Equal": (aten.eq.Tensor, aten.eq.Scalar),
}.items():
    translates(*_targets)(_comparison(_op))
translates(aten.ne.Tensor, aten.ne.Scalar)(_comparison("Equal", opposite=True))


def _unary(op: str) -> Callable[[Call], ir.Value]:
    def translate(c: Call) -> ir.Value:
        return c.e(op, c.tensor(0, c.out.dtype))

    return translate


for _op, _targets in {
    "Neg": (aten.neg.default,),
    "Exp": (aten.exp.default,),
    "Cos": (aten.cos.default,),
    "Sin": (aten.sin.default,),
    "Tanh": (aten.tanh.default,),
    "Sigmoid": (aten.sigmoid.default,),
    "Tan": (aten.tan.default,),
    "Relu": (aten.relu.default,),
    "Erf": (aten.erf.default,),
    "Reciprocal": (aten.reciprocal.default,),
    "Sign": (aten.sign.default,),
    "Sqrt": (aten.sqrt.default,),
    "Log": (aten.log.default,),
    "Abs": (aten.abs.default,),
}.items():
    translates(*_targets)(_unary(_op))


@fuses(aten.neg.default)
def negative_product(c: Call) -> ir.Value | None:
    """-(x w) = x (-w), w being made of parameters only: a runtime computes -w once, when it loads the graph."""
    product = c.node_at(0)
    if not is_call(product, aten.mul.Tensor) or len(product.users) > 1:
        return None
    for x, weight in factors(product):
        if isinstance(x, fx.Node) and isinstance(weight, fx.Node) and is_constant(c.value(weight)):
            negative = c.e("Neg", c.value(weight))
            declare(negative, weight.meta["type"])
            return c.e("Mul", c.value(x), negative)
    return None


def _logical(op: str) -> Callable[[Call], ir.Value]:
    """What is not zero is true."""

    def translate(c: Call) -> ir.Value:
        return c.e(op, *(c.tensor(i, torch.bool) for i in range(len(c.node.args))))

    return translate


for _op, _target in {
    "Or": aten.logical_or.default,
    "And": aten.logical_and.default,
    "Xor": aten.logical_xor.default,
    "Not": aten.logical_not.default,
}.items():
    translates(_target)(_logical(_op))


@translates(aten.isnan.default)
def isnan(c: Call) -> ir.Value:
    """Is it not a number?"""
    return c.e("IsNaN", c.tensor(0))


@translates(aten.isinf.default)
def isinf(c: Call) -> ir.Value:
    """Is it infinite?"""
    return c.e("IsInf", c.tensor(0))


@translates(aten.isfinite.default)
def isfinite(c: Call) -> ir.Value:
    """Is it neither?"""
    return c.e("Not", c.e("Or", isnan(c), isinf(c)))


@translates(aten.square.default)
def square(c: Call) -> ir.Value:
    """x^2."""
    return c.e("Mul", c.tensor(0), c.tensor(0))


@translates(aten.exp2.default)
def exp2(c: Call) -> ir.Value:
    """2^x."""
    return c.e("Pow", c.e.const(2.0, c.out.dtype), c.tensor(0, c.out.dtype))


@translates(aten.expm1.default)
def expm1(c: Call) -> ir.Value:
    """exp(x) - 1 = 2 sinh(x/2) exp(x/2), which keeps small x."""
    half = c.e("Mul", c.tensor(0, c.out.dtype), c.e.const(0.5, c.out.dtype))
    twice = c.e("Mul", c.e("Sinh", half), c.e.const(2.0, c.out.dtype))
    return c.e("Mul", twice, c.e("Exp", half))


def _logarithm(base: float) -> Callable[[Call], ir.Value]:
    def translate(c: Call) -> ir.Value:
        return c.e("Mul", c.e("Log", c.tensor(0, c.out.dtype)), c.e.const(1 / math.log(base), c.out.dtype))

    return translate


translates(aten.log2.default)(_logarithm(2))
translates(aten.log10.default)(_logarithm(10))


@translates(aten.lerp.Scalar, aten.lerp.Tensor)
def lerp(c: Call) -> ir.Value:
    """a + weight (b - a)."""
    a, b, weight = (c.tensor(i, c.out.dtype) for i in range(3))
    return c.e("Add", a, c.e("Mul", weight, c.e("Sub", b, a)))


def _addition(op: str) -> Callable[[Call], ir.Value]:
    """x + value * op(a, b)."""

    def translate(c: Call) -> ir.Value:
        dtype = c.out.dtype
        x, a, b = (c.tensor(i, dtype) for i in range(3))
        return c.e("Add", x, c.e("Mul", c.e(op, a, b), c.e.const(c.raw("value", 1), dtype)))

    return translate


translates(aten.addcmul.default)(_addition("Mul"))
translates(aten.addcdiv.default)(_addition("Div"))


@translates(aten.rsqrt.default)
def rsqrt(c: Call) -> ir.Value:
    """1 / sqrt(x)."""
    return c.e("Reciprocal", c.e("Sqrt", c.tensor(0, c.out.dtype)))


@translates(aten.log1p.default)
def log1p(c: Call) -> ir.Value:
    """log(1 + x)."""
    return c.e("Log", c.e("Add", c.tensor(0, c.out.dtype), c.e.const(1.0, c.out.dtype)))


@translates(aten.silu.default)
def silu(c: Call) -> ir.Value:
    """x sigmoid(x)."""
    x = c.tensor(0)
    return c.e("Mul", x, c.e("Sigmoid", x))


@translates(aten.gelu.default)
def gelu(c: Call) -> ir.Value:
    """x Phi(x), or its approximation by tanh (Hendrycks and Gimpel, arXiv 1606.08415)."""
    x, dtype = c.tensor(0), c.out.dtype
    half = c.e("Mul", x, c.e.const(0.5, dtype))
    if c.raw("approximate", "none") == "tanh":
        cube = c.e("Mul", c.e("Mul", x, x), x)
        inner = c.e("Add", x, c.e("Mul", cube, c.e.const(0.044715, dtype)))
        bent = c.e("Tanh", c.e("Mul", inner, c.e.const((2 / torch.pi) ** 0.5, dtype)))
    else:
        bent = c.e("Erf", c.e("Mul", x, c.e.const(0.5**0.5, dtype)))
    return c.e("Mul", half, c.e("Add", bent, c.e.const(1.0, dtype)))


@translates(aten.pow.Tensor_Scalar)
def power(c: Call) -> ir.Value:
    """x to a number."""
    x = c.tensor(0, c.out.dtype)
    if c.raw(1) == 2:
        return c.e("Mul", x, x)
    return c.e("Pow", x, c.e.const(c.raw(1), c.out.dtype))


@translates(aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar)
def where(c: Call) -> ir.Value:
    """a where the condition holds, else b."""
    return c.e("Where", c.tensor(0), c.tensor(1, c.out.dtype), c.tensor(2, c.out.dtype))


@translates(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def masked_fill(c: Call) -> ir.Value:
    """x, but a value where the mask holds."""
    return c.e("Where", c.tensor(1), c.tensor(2, c.out.dtype), c.tensor(0, c.out.dtype))


@translates(aten.to.dtype, aten._to_copy.default, aten.to.other, aten.type_as.default)
def to_dtype(c: Call) -> ir.Value:
    """x in another dtype; nothing is added if it has it."""
    return c.tensor(0, c.out.dtype)


@translates(aten.clone.default, aten.contiguous.default, aten.alias.default, aten.detach.default)
def same(c: Call) -> ir.Value:
    """x."""
    return c.tensor(0)
