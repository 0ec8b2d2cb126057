"""The rules of the delta family: `com.microsoft::LinearAttention` if ONNX Runtime has it."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from sleepc.backends.onnx.emit import MICROSOFT, Emitter
from sleepc.backends.onnx.spelling import SPELLINGS, Query, Spelling, States, Tokens, read_matrix
from sleepc.memory.rule import Rule


def step(e: Emitter, rule: Rule, now: Mapping[str, ir.Value], states: States, t: Tokens) -> list[ir.Value]:
    """One token: S <- e^g S; S <- S + k (beta (v - S^T k))."""
    column, row, (state,) = e.ints(3), e.ints(2), states
    if "g" in now:
        decay = e("Exp", now["g"])
        state = e("Mul", state, e("Unsqueeze", decay, column if "g" in t.per_channel else e.ints(2, 3)))
    k, written = e("Unsqueeze", now["k"], column), e("Unsqueeze", now["v"], row)
    if rule.corrects:
        written = e("Sub", written, e("MatMul", e("Unsqueeze", now["k"], row), state))
    written = e("Mul", written, e("Unsqueeze", now["beta"], e.ints(2, 3)))
    return [e("Add", state, e("Mul", k, written))]


def kernel(
    e: Emitter, rule: Rule, q: Query | None, t: Tokens, states: States, scale: float
) -> tuple[ir.Value | None, list[ir.Value]]:
    """As LinearAttention: tokens first, heads side by side."""

    def flat(x: ir.Value, width: int) -> ir.Value:
        """[B, H, T, d] -> [B, T, H*d]."""
        return e("Reshape", e.transpose(x, (0, 2, 1, 3)), e.ints(0, 0, width))

    v, beta = t.values["v"], e.transpose(t.values["beta"], (0, 2, 1))
    if not rule.corrects:  # the kernel's rules without the correction leave beta out
        v = e("Mul", v, e("Unsqueeze", t.values["beta"], e.ints(3)))
    k = flat(t.values["k"], t.heads * t.dk)
    name, decay = rule.name, None
    if "g" not in t.values:
        name = {"gated": "linear", "gated_delta": "delta"}.get(name, name)
    else:
        g = t.values["g"]
        decay = flat(g, t.heads * t.dk) if "g" in t.per_channel else e.transpose(g, (0, 2, 1))
    heads = t.heads if q is None else q[1]
    query = k if q is None else flat(q[0], heads * t.dk)
    out, new = e.several(
        "LinearAttention",
        2,
        *(query, k, flat(v, t.heads * t.dv), states[0], decay, beta if rule.corrects else None),
        domain=MICROSOFT,
        q_num_heads=heads,
        kv_num_heads=t.heads,
        update_rule=name,
        scale=scale,
    )
    if q is None:
        return None, [new]
    return e.transpose(e("Reshape", out, e.ints(0, 0, heads, t.dv)), (0, 2, 1, 3)), [new]


SPELLINGS |= dict.fromkeys(("linear", "gated", "delta", "gated_delta"), Spelling(step, read_matrix, kernel))
