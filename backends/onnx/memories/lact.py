"""LaCT's SwiGLU memory: a window at once, its orthogonalised gradient unrolled."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
import torch

from sleepc.backends.onnx.emit import Emitter
from sleepc.backends.onnx.spelling import SPELLINGS, Spelling, States, Tokens
from sleepc.memory.rule import Rule
from sleepc.memory.rules.lact import STEPS, TINY

TURNED = (0, 1, 3, 2)


def step(e: Emitter, rule: Rule, now: Mapping[str, ir.Value], states: States, t: Tokens) -> list[ir.Value]:
    """W <- rows(W + ns(dL/dW)) of the three matrices."""
    whole = _whole(e, states)
    w0, w1, w2 = whole
    k, v = now["k"], now["v"]
    opened, taken = e("MatMul", k, e.transpose(w0, TURNED)), e("MatMul", k, e.transpose(w2, TURNED))
    share = e("Sigmoid", opened)
    gate, back = e("Mul", opened, share), e("MatMul", v, w1)
    slope = e("Mul", share, e("Sub", e("Add", opened, _number(e, 1.0)), gate))
    sides = {
        "eta0": (e("Mul", e("Mul", back, taken), slope), k),
        "eta1": (v, e("Mul", gate, taken)),
        "eta2": (e("Mul", back, gate), k),
    }
    new = []
    for added, w, (rate, (left, right)) in zip(states, whole, sides.items(), strict=False):
        weighed = e("Mul", left, e("Unsqueeze", now[rate], e.ints(3)))
        moved = e("Add", w, _orthogonal(e, e("MatMul", e.transpose(weighed, TURNED), right)))
        kept = e("Mul", moved, e("Div", _lengths(e, w), _lengths(e, moved)))
        new.append(e("Add", added, e("Sub", kept, w)))
    return new


def read(e: Emitter, states: States, q: ir.Value) -> ir.Value:
    """W1 (silu(W0 q) * W2 q)."""
    w0, w1, w2 = (e.transpose(w, TURNED) for w in _whole(e, states))
    opened = e("MatMul", q, w0)
    gate = e("Mul", opened, e("Sigmoid", opened))
    return e("MatMul", e("Mul", gate, e("MatMul", q, w2)), w1)


def _whole(e: Emitter, states: States) -> list[ir.Value]:
    """W0, W1, W2, of what was added to them and what was learned."""
    return [e("Add", added, start) for added, start in zip(states[:3], states[3:], strict=True)]


def _orthogonal(e: Emitter, g: ir.Value) -> ir.Value:
    x = e("Div", g, _root(e, g, -2, -1))
    for a, b, c in STEPS:
        inner = e("MatMul", x, e.transpose(x, TURNED))
        both = e("Mul", e("MatMul", inner, inner), _number(e, c))
        both = e("Add", e("Mul", inner, _number(e, b)), both)
        x = e("Add", e("Mul", x, _number(e, a)), e("MatMul", both, x))
    return x


def _lengths(e: Emitter, w: ir.Value) -> ir.Value:
    return _root(e, w, -1)


def _root(e: Emitter, x: ir.Value, *over: int) -> ir.Value:
    """Of the sum of squares over these dimensions, which stay."""
    square = e("ReduceSum", e("Mul", x, x), e.ints(*over), keepdims=1)
    return e("Sqrt", e("Add", square, _number(e, TINY)))


def _number(e: Emitter, value: float) -> ir.Value:
    return e.const(value, torch.float32)


SPELLINGS["lact"] = Spelling(step, read)
