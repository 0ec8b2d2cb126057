"""PyTorch's arithmetic, functions, comparisons and reductions, in plain ONNX operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from torch import fx

from sleepc.backends.onnx.call import Call, aten, fuses, ours, translates
from sleepc.backends.onnx.emit import is_constant
from sleepc.backends.onnx.match import factors
from sleepc.ir.graph import is_call


def _binary(op: str) -> Callable[[Call], ir.Value]:
    """Both sides in the result's dtype, as PyTorch promotes them."""

    def translate(c: Call) -> ir.Value:
        return c.e(op, c.tensor(0, c.out.dtype), c.tensor(1, c.out.dtype))

    return translate


for _op, _targets in {
    "Add": (aten.add.Tensor, aten.add.Scalar),
    "Sub": (aten.sub.Tensor, aten.sub.Scalar),
    "Mul": (aten.mul.Tensor, aten.mul.Scalar),
    "Div": (aten.div.Tensor, aten.div.Scalar),
    "Max": (aten.maximum.default,),
    "Min": (aten.minimum.default,),
}.items():
    translates(*_targets)(_binary(_op))


def _comparison(op: str) -> Callable[[Call], ir.Value]:
    """Both sides in the dtype that PyTorch compares them in."""

    def translate(c: Call) -> ir.Value:
        wide = c.type(0).dtype
        other = c.node.args[1]
        if hasattr(other, "meta"):
            wide = torch.promote_types(wide, c.type(1).dtype)
        elif isinstance(other, float) and not wide.is_floating_point:
            wide = torch.float32
        return c.e(op, c.tensor(0, wide), c.tensor(1, wide))

    return translate


for _op, _targets in {
    "Less": (aten.lt.Tensor, aten.lt.Scalar),
    "LessOrEqual": (aten.le.Tensor, aten.le.Scalar),
    "Greater": (aten.gt.Tensor, aten.gt.Scalar),
    "GreaterOrEqual": (aten.ge.Tensor, aten.ge.Scalar),
    "Equal": (aten.eq.Tensor, aten.eq.Scalar),
}.items():
    translates(*_targets)(_comparison(_op))


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
    "Softplus": (aten.softplus.default,),
    "Relu": (aten.relu.default,),
    "Floor": (aten.floor.default,),
    "Sqrt": (aten.sqrt.default,),
    "Log": (aten.log.default,),
    "Abs": (aten.abs.default,),
    "Not": (aten.logical_not.default,),
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
            return c.e("Mul", c.value(x), c.e("Neg", c.value(weight)))
    return None


@fuses(aten.mul.Tensor)
def unmasked(c: Call) -> ir.Value | None:
    """What is set to 0 at padding only to be written into slots, where padding has none, needs no mask."""
    if not c.style.columns or not _is_only_written(c.node):
        return None
    for x, mask in factors(c.node):
        if isinstance(x, fx.Node) and _is_padding(mask) and x.meta["type"].dims == c.out.dims:
            return c.value(x) if x.meta["type"].dtype == c.out.dtype else None
    return None


def _is_padding(node: Any) -> bool:
    while is_call(node, aten.unsqueeze.default):
        node = node.args[0]
    return isinstance(node, fx.Node) and node.op == "placeholder" and node.meta["port"].name == "real"


def _is_only_written(node: fx.Node) -> bool:
    """Do all that read a value write it into slots, in the end?"""
    moved = (aten.transpose.int, aten.to.dtype)
    return bool(node.users) and all(
        (is_call(user, ours.write_slots.default) and user.args[1] is node)
        or (is_call(user, *moved) and _is_only_written(user))
        for user in node.users
    )


@translates(aten.logical_or.default)
def logical_or(c: Call) -> ir.Value:
    """a or b."""
    return c.e("Or", c.tensor(0, torch.bool), c.tensor(1, torch.bool))


@translates(aten.logical_and.default)
def logical_and(c: Call) -> ir.Value:
    """a and b."""
    return c.e("And", c.tensor(0, torch.bool), c.tensor(1, torch.bool))


@translates(aten.rsqrt.default)
def rsqrt(c: Call) -> ir.Value:
    """1 / sqrt(x)."""
    return c.e("Reciprocal", c.e("Sqrt", c.tensor(0)))


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


@translates(aten.clamp.default)
def clamp(c: Call) -> ir.Value:
    """x between two numbers, of which either may be missing."""
    x = c.tensor(0, c.out.dtype)
    low, high = c.option(1, "min"), c.option(2, "max")
    if low is not None:
        x = c.e("Max", x, c.e.const(low, c.out.dtype))
    return x if high is None else c.e("Min", x, c.e.const(high, c.out.dtype))


@translates(aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar)
def where(c: Call) -> ir.Value:
    """a where the condition holds, else b."""
    return c.e("Where", c.tensor(0), c.tensor(1, c.out.dtype), c.tensor(2, c.out.dtype))


@translates(aten.softmax.int)
def softmax(c: Call) -> ir.Value:
    """Softmax over one dimension, in the dtype asked for."""
    return c.e("Softmax", c.tensor(0, c.out.dtype), axis=int(c.raw(1)))


def _reduction(op: str) -> Callable[[Call], ir.Value]:
    def translate(c: Call) -> ir.Value:
        axes: Any = c.option(1, "dim")
        axes = [axes] if isinstance(axes, int) else axes
        axes = list(range(len(c.type(0).dims))) if not axes else axes
        keep = int(bool(c.option(2, "keepdim", False)))
        return c.e(op, c.tensor(0, c.out.dtype), c.e.ints(*axes), keepdims=keep)

    return translate


for _op, _targets in {
    "ReduceMean": (aten.mean.dim,),
    "ReduceSum": (aten.sum.dim_IntList,),
    "ReduceMax": (aten.amax.default,),
}.items():
    translates(*_targets)(_reduction(_op))


@translates(aten.to.dtype, aten._to_copy.default)
def to_dtype(c: Call) -> ir.Value:
    """x in another dtype; nothing where it has it."""
    return c.tensor(0, c.out.dtype)


@translates(aten.clone.default, aten.contiguous.default, aten.alias.default, aten.detach.default)
def same(c: Call) -> ir.Value:
    """x."""
    return c.tensor(0)
