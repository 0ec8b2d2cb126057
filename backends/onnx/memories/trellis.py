"""The two slot banks of TRELLIS, token by token."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
import torch

from sleepc.backends.onnx.emit import Emitter
from sleepc.backends.onnx.spelling import SPELLINGS, Spelling, States, Tokens
from sleepc.memory.rule import Rule
from sleepc.memory.slots import EPSILON


def step(e: Emitter, rule: Rule, now: Mapping[str, ir.Value], states: States, t: Tokens) -> list[ir.Value]:
    """M <- e^g M - w (beta J(M w)^T (phi(M w) - a)) for both banks, that of values being held from codes to values."""
    keys, values = states
    size = _size(e, now["v"])
    aim, w = e("Mul", size, now["code_v"]), e("Unsqueeze", e("Div", now["v"], size), e.ints(2))
    change = e("Unsqueeze", _change(e, rule, e("MatMul", w, _turned(e, values)), aim, now["beta_v"]), e.ints(3))
    values = e("Sub", _kept(e, values, now, "g_v", t), e("Mul", change, w))
    along = e("MatMul", e("Unsqueeze", now["k"], e.ints(2)), keys)
    change = e("Unsqueeze", _change(e, rule, along, now["code"], now["beta"]), e.ints(2))
    keys = e("Sub", _kept(e, keys, now, "g", t), e("Mul", e("Unsqueeze", now["k"], e.ints(3)), change))
    return [keys, values]


def read(e: Emitter, states: States, q: ir.Value) -> ir.Value:
    """M_V^T f(M_K q)."""
    keys, values = states
    found = e("MatMul", q, keys)
    opened = e("Mul", found, e("Sigmoid", found))
    return e("MatMul", e("Div", opened, _size(e, opened)), values)


def _change(e: Emitter, rule: Rule, found: ir.Value, code: ir.Value, beta: ir.Value) -> ir.Value:
    """beta J(z)^T (phi(z) - a) [B,H,m] of z [B,H,1,m]."""
    z = e("Squeeze", found, e.ints(2))
    if rule.name == "trellis":
        change = e("Sub", z, code)
    else:
        s, one = e("Sigmoid", z), e.const(1.0, torch.float32)
        slope = e("Mul", s, e("Add", one, e("Mul", z, e("Sub", one, s))))
        change = e("Mul", slope, e("Sub", e("Mul", z, s), code))
    return e("Mul", e("Unsqueeze", beta, e.ints(2)), change)


def _kept(e: Emitter, bank: ir.Value, now: Mapping[str, ir.Value], gate: str, t: Tokens) -> ir.Value:
    """What has not decayed of a bank."""
    if gate not in now:
        return bank
    return e("Mul", bank, e("Unsqueeze", e("Exp", now[gate]), e.ints(3) if gate in t.per_channel else e.ints(2, 3)))


def _turned(e: Emitter, bank: ir.Value) -> ir.Value:
    return e("Transpose", bank, perm=[0, 1, 3, 2])


def _size(e: Emitter, x: ir.Value) -> ir.Value:
    square = e("ReduceSum", e("Mul", x, x), e.ints(-1), keepdims=1)
    return e("Sqrt", e("Add", square, e.const(EPSILON, torch.float32)))


SPELLINGS |= dict.fromkeys(("trellis", "trellis_silu"), Spelling(step, read))
