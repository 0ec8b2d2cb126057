"""The rules of Titans, token by token."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
import torch

from sleepc.backends.onnx.emit import Emitter
from sleepc.backends.onnx.spelling import SPELLINGS, Spelling, States, Tokens, read_matrix
from sleepc.memory.rule import Rule
from sleepc.memory.rules.titans_mlp import EPSILON


def step(e: Emitter, rule: Rule, now: Mapping[str, ir.Value], states: States, t: Tokens) -> list[ir.Value]:
    """P <- eta P + beta k (v - S^T k); S <- e^g S + P."""
    memory, momentum = states
    column, row, both = e.ints(3), e.ints(2), e.ints(2, 3)
    known = e("MatMul", e("Unsqueeze", now["k"], row), memory)
    surprise = e("Mul", e("Sub", e("Unsqueeze", now["v"], row), known), e("Unsqueeze", now["beta"], both))
    momentum = e("Mul", momentum, e("Unsqueeze", now["eta"], both))
    momentum = e("Add", momentum, e("Mul", e("Unsqueeze", now["k"], column), surprise))
    if "g" in now:
        memory = e("Mul", memory, e("Unsqueeze", e("Exp", now["g"]), column if "g" in t.per_channel else both))
    return [e("Add", memory, e("Mul", momentum, e("Unsqueeze", now["token"], both))), momentum]


SPELLINGS["titans"] = Spelling(step, read_matrix)


def mlp_step(e: Emitter, rule: Rule, now: Mapping[str, ir.Value], states: States, t: Tokens) -> list[ir.Value]:
    """P <- eta P - theta G; D <- e^g D + P, of both matrices W + D of an MLP."""
    d1, d2, p1, p2, w1, w2 = states
    k, v = (e("Unsqueeze", now[name], e.ints(2)) for name in ("k", "v"))
    z, second = e("MatMul", k, e("Add", w1, d1)), e("Add", w2, d2)
    s, one = e("Sigmoid", z), e.const(1.0, torch.float32)
    hidden, slope = e("Mul", z, s), e("Mul", s, e("Add", one, e("Mul", z, e("Sub", one, s))))
    miss = e("Sub", e("MatMul", hidden, second), v)
    back = e("Mul", slope, e("MatMul", miss, e("Transpose", second, perm=[0, 1, 3, 2])))
    error = _square(e, miss)
    square = e("Add", e("Mul", _square(e, k), _square(e, back)), e("Mul", _square(e, hidden), error))
    share = e("Div", error, e("Add", e("Max", error, square), e.const(EPSILON, torch.float32)))
    theta = e("Mul", share, e("Unsqueeze", now["beta"], e.ints(2, 3)))
    memories, momenta = [], []
    for d, p, left, right in ((d1, p1, k, back), (d2, p2, hidden, miss)):
        column = e("Transpose", left, perm=[0, 1, 3, 2])
        slowed = e("Mul", p, e("Unsqueeze", now["eta"], e.ints(2, 3)))
        momentum = e("Sub", slowed, e("Mul", column, e("Mul", theta, right)))
        kept = e("Mul", d, e("Unsqueeze", e("Exp", now["g"]), e.ints(2, 3))) if "g" in now else d
        memories.append(e("Add", kept, e("Mul", momentum, e("Unsqueeze", now["token"], e.ints(2, 3)))))
        momenta.append(momentum)
    return [*memories, *momenta]


def mlp_read(e: Emitter, states: States, q: ir.Value) -> ir.Value:
    """SiLU(q (W1 + D1)) (W2 + D2)."""
    d1, d2, _, _, w1, w2 = states
    z = e("MatMul", q, e("Add", w1, d1))
    return e("MatMul", e("Mul", z, e("Sigmoid", z)), e("Add", w2, d2))


def _square(e: Emitter, x: ir.Value) -> ir.Value:
    return e("ReduceSum", e("Mul", x, x), e.ints(-1), keepdims=1)


SPELLINGS["titans_mlp"] = Spelling(mlp_step, mlp_read)
