"""Fast weights whose reads settle, token by token."""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx_ir as ir
import torch

from sleepc.backends.onnx.emit import Emitter
from sleepc.backends.onnx.spelling import SPELLINGS, Spelling, States, Tokens
from sleepc.memory.rule import Rule
from sleepc.memory.rules.ba2016 import EPSILON, KEPT, RATE, SETTLING


def step(e: Emitter, rule: Rule, now: Mapping[str, ir.Value], states: States, t: Tokens) -> list[ir.Value]:
    """A <- e^(token log 0.95) A + f(k) 0.5 v."""
    kept = e("Exp", e("Mul", now["token"], e.const(math.log(KEPT), torch.float32)))
    value = e("Mul", now["v"], e.const(RATE, torch.float32))
    written = e("Mul", e("Unsqueeze", _features(e, now["k"]), e.ints(3)), e("Unsqueeze", value, e.ints(2)))
    return [e("Add", e("Mul", states[0], e("Unsqueeze", kept, e.ints(2, 3))), written)]


def read(e: Emitter, states: States, q: ir.Value) -> ir.Value:
    """A^T h_1."""
    h = _features(e, q)
    for _ in range(SETTLING):
        h = _features(e, e("Add", q, e("MatMul", h, states[0])))
    return e("MatMul", h, states[0])


def _features(e: Emitter, x: ir.Value) -> ir.Value:
    apart = e("Sub", x, e("ReduceMean", x, e.ints(-1), keepdims=1))
    square = e("ReduceSum", e("Mul", apart, apart), e.ints(-1), keepdims=1)
    length = e("Sqrt", e("Add", square, e.const(EPSILON, torch.float32)))
    return e("Relu", e("Div", apart, length))


SPELLINGS["ba2016"] = Spelling(step, read)
