"""The rule of Titans, token by token."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from sleepc.backends.onnx.emit import Emitter
from sleepc.backends.onnx.spelling import SPELLINGS, Spelling, States, Tokens, read_matrix
from sleepc.memory.rule import Rule


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
