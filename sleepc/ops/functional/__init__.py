"""The operators as plain differentiable functions: what `sleepc::NAME` runs.

Heads first: q [B, Hq, T, D], k and v [B, Hkv, T, D]; Hq is a multiple of Hkv, query head h uses KV
head h // (Hq // Hkv). B batch, T tokens, L window, s sinks, W = s + L slots. No result shares
memory with an argument (except `write_slots_`, `write_slot_`).
"""

from sleepc.ops.functional.attention import attention, attention_weights, kept_attention, window_attention
from sleepc.ops.functional.features import l2norm, short_conv
from sleepc.ops.functional.fused import gated_norm, gates, masked_l2norm, mixed
from sleepc.ops.functional.lowered import linears, rms_norm, rotary
from sleepc.ops.functional.memory import delta_rule, delta_rule_read, replay
from sleepc.ops.functional.windows import window_bias, window_mask, window_slots, write_slot_, write_slots, write_slots_

__all__ = [
    "attention",
    "attention_weights",
    "delta_rule",
    "delta_rule_read",
    "gated_norm",
    "gates",
    "kept_attention",
    "l2norm",
    "linears",
    "masked_l2norm",
    "mixed",
    "replay",
    "rms_norm",
    "rotary",
    "short_conv",
    "window_attention",
    "window_bias",
    "window_mask",
    "window_slots",
    "write_slot_",
    "write_slots",
    "write_slots_",
]
