"""PyTorch's activations, in plain ONNX operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from sleepc.backends.onnx.call import Call, aten, translates


def _activation(op: str, **attributes: tuple[int, str, float]) -> Callable[[Call], ir.Value]:
    """One ONNX operator; attribute=(place, name, default) of the argument that it is."""

    def translate(c: Call) -> ir.Value:
        given: dict[str, Any] = {name: float(c.option(*argument)) for name, argument in attributes.items()}
        return c.e(op, c.tensor(0), **given)

    return translate


translates(aten.leaky_relu.default)(_activation("LeakyRelu", alpha=(1, "negative_slope", 0.01)))
translates(aten.celu.default)(_activation("Celu", alpha=(1, "alpha", 1.0)))
translates(aten.selu.default)(_activation("Selu"))
translates(aten.hardswish.default)(_activation("HardSwish"))


@translates(aten.hardsigmoid.default)
def hardsigmoid(c: Call) -> ir.Value:
    """x / 6 + 1/2 between 0 and 1."""
    return c.e("HardSigmoid", c.tensor(0), alpha=1 / 6, beta=0.5)


@translates(aten.elu.default)
def elu(c: Call) -> ir.Value:
    """scale x above 0, scale alpha (exp(input_scale x) - 1) below."""
    e, x, dtype = c.e, c.tensor(0), c.out.dtype
    alpha, scale, inner = (float(c.option(i + 1, n, 1.0)) for i, n in enumerate(("alpha", "scale", "input_scale")))
    zero = e.const(0.0, dtype)
    low = e("Mul", e("Min", x, zero), e.const(inner, dtype))
    low = e("Mul", e("Sub", e("Exp", low), e.const(1.0, dtype)), e.const(alpha, dtype))
    return e("Mul", e("Add", e("Max", x, zero), low), e.const(scale, dtype))


@translates(aten.softplus.default)
def softplus(c: Call) -> ir.Value:
    """log(1 + exp(beta x)) / beta; x itself where beta x is beyond the threshold, which is the same."""
    x, beta = c.tensor(0), float(c.option(1, "beta", 1.0))
    if beta == 1.0:
        return c.e("Softplus", x)
    factor = c.e.const(beta, c.out.dtype)
    return c.e("Div", c.e("Softplus", c.e("Mul", x, factor)), factor)


@translates(aten.log_sigmoid.default)
def log_sigmoid(c: Call) -> ir.Value:
    """-log(1 + exp(-x))."""
    return c.e("Neg", c.e("Softplus", c.e("Neg", c.tensor(0))))


@translates(aten.mish.default)
def mish(c: Call) -> ir.Value:
    """x tanh(log(1 + exp(x)))."""
    x = c.tensor(0)
    return c.e("Mul", x, c.e("Tanh", c.e("Softplus", x)))


@translates(aten.glu.default)
def glu(c: Call) -> ir.Value:
    """One half times the sigmoid of the other."""
    axis = int(c.option(1, "dim", -1)) % len(c.out.dims)
    half = c.out.dims[axis]
    a, b = c.e.several("Split", 2, c.tensor(0), c.e.shape([half, half]), axis=axis)
    return c.e("Mul", a, c.e("Sigmoid", b))


def _between(c: Call, low: Any, high: Any) -> ir.Value:
    x = c.tensor(0, c.out.dtype)
    x = x if low is None else c.e("Max", x, c.e.const(low, c.out.dtype))
    return x if high is None else c.e("Min", x, c.e.const(high, c.out.dtype))


@translates(aten.clamp.default, aten.clip.default)
def clamp(c: Call) -> ir.Value:
    """x between two numbers, of which either may be missing."""
    return _between(c, c.option(1, "min"), c.option(2, "max"))


@translates(aten.clamp_min.default)
def clamp_min(c: Call) -> ir.Value:
    """x, at least a number."""
    return _between(c, c.option(1, "min"), None)


@translates(aten.clamp_max.default)
def clamp_max(c: Call) -> ir.Value:
    """x, at most a number."""
    return _between(c, None, c.option(1, "max"))


@translates(aten.hardtanh.default)
def hardtanh(c: Call) -> ir.Value:
    """x between -1 and 1, or two other numbers."""
    return _between(c, c.option(1, "min_val", -1.0), c.option(2, "max_val", 1.0))


@translates(aten.relu6.default)
def relu6(c: Call) -> ir.Value:
    """x between 0 and 6."""
    return _between(c, 0.0, 6.0)
