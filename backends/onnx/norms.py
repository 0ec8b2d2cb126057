"""Norms: layer norm, the L2 norm of a head; RMS norm is found where it is spelled out."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from torch import fx

from sleepc.backends.onnx.call import Call, aten, fuses, ours, translates
from sleepc.backends.onnx.match import constant, factors, through
from sleepc.ir.graph import is_call
from sleepc.ops.functional.features import L2_EPSILON


@translates(aten.layer_norm.default)
def layer_norm(c: Call) -> ir.Value:
    """Over the last dimensions, with weight and bias where there are any."""
    sizes = c.raw(1)
    weight = c.tensor(2) if c.raw(2) is not None else c.e.const([1.0] * int(sizes[-1]), c.out.dtype)
    bias = c.tensor(3) if c.raw(3) is not None else None
    return c.e(
        "LayerNormalization", c.tensor(0), weight, bias, axis=-len(sizes), epsilon=float(c.option(4, "eps", 1e-5))
    )


@translates(ours.l2norm.default)
def l2norm(c: Call) -> ir.Value:
    """x rsqrt(sum x^2 + 1e-6) over the last dimension."""
    x = c.tensor(0)
    total = c.e("ReduceSum", c.e("Mul", x, x), c.e.ints(-1), keepdims=1)
    root = c.e("Sqrt", c.e("Add", total, c.e.const(L2_EPSILON, c.out.dtype)))
    return c.e("Div", x, root)


@fuses(ours.l2norm.default)
def l2norm_as_rms_norm(c: Call) -> ir.Value:
    """x rsqrt(d) rsqrt(mean x^2 + 1e-6 / d), which is the same, in one kernel."""
    width = int(c.out.dims[-1])
    scale = c.e.const([width**-0.5] * width, c.out.dtype)
    return c.e("RMSNormalization", c.tensor(0), scale, axis=-1, epsilon=L2_EPSILON / width)


@fuses(aten.mul.Tensor)
def rms_norm(c: Call) -> ir.Value | None:
    """x rsqrt(mean x^2 + eps) times a weight [d] (Zhang and Sennrich, arXiv 1910.07467)."""
    for scaled, weight in factors(c.node):
        found = _normed(through(scaled))
        if found is None or not isinstance(weight, fx.Node) or weight.meta["type"].dims != c.out.dims[-1:]:
            continue
        x, epsilon = found
        if x.meta["type"].dtype != c.out.dtype or weight.meta["type"].dtype != c.out.dtype:
            continue
        return c.e("RMSNormalization", c.value(x), c.value(weight), axis=-1, epsilon=epsilon)
    return None


def _normed(node: Any) -> tuple[fx.Node, float] | None:
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
