"""Norms: layer norm, RMS norm, the L2 norm of a head."""

from __future__ import annotations

import onnx_ir as ir
import torch

from sleepc.backends.onnx.call import Call, aten, fuses, ours, translates
from sleepc.ops.functional.features import L2_EPSILON


@translates(aten.layer_norm.default)
def layer_norm(c: Call) -> ir.Value:
    """Over the last dimensions, with weight and bias if there are any."""
    sizes = c.raw(1)
    weight = c.tensor(2) if c.raw(2) is not None else c.e.const([1.0] * int(sizes[-1]), c.out.dtype)
    bias = c.tensor(3) if c.raw(3) is not None else None
    return c.e(
        "LayerNormalization", c.tensor(0), weight, bias, axis=-len(sizes), epsilon=float(c.option(4, "eps", 1e-5))
    )


@translates(aten.rms_norm.default)
def rms_norm_of_torch(c: Call) -> ir.Value:
    """x rsqrt(mean x^2 + eps) over the last dimensions, times a weight if there is one."""
    x, sizes, epsilon = c.tensor(0), c.raw(1), c.raw(3)
    epsilon = torch.finfo(c.out.dtype).eps if epsilon is None else float(epsilon)
    mean = c.e("ReduceMean", c.e("Mul", x, x), c.e.ints(*range(-len(sizes), 0)), keepdims=1)
    normed = c.e("Div", x, c.e("Sqrt", c.e("Add", mean, c.e.const(epsilon, c.out.dtype))))
    return c.e("Mul", normed, c.tensor(2)) if c.raw(2) is not None else normed


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


@translates(ours.rms_norm.default)
def rms_norm(c: Call) -> ir.Value:
    """x [.., d], weight [d]."""
    return c.e("RMSNormalization", c.tensor(0), c.tensor(1), axis=-1, epsilon=float(c.raw("eps")))
