"""Rotary positions."""

from __future__ import annotations

import onnx_ir as ir

from sleepc.backends.onnx.call import Call, ours, translates


@translates(ours.rotary.default)
def rotary(c: Call) -> ir.Value:
    """x [B, H, T, D], cos and sin [B, T, D]; the kernel wants the half of the tables that counts."""
    tables = [_half(c, at) for at in (1, 2)]
    return c.e("RotaryEmbedding", c.tensor(0), *tables)


def _half(c: Call, at: int) -> ir.Value:
    """[B, T, D/2]."""
    e, width = c.e, int(c.type(at).dims[-1])
    return e("Slice", c.tensor(at), e.ints(0), e.ints(width // 2), e.ints(2))
