"""Attention over kept keys by PyTorch's own kernel, on devices where it is the faster one and equal."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sleepc.ops import functional
from sleepc.ops.functional.heads import group

FUSED = ("cpu",)
"""Devices whose kernel, too, gives zeros to a query that sees nothing."""


def window_attention(q: Tensor, k: Tensor, v: Tensor, *held: Any, scale: float, softcap: float = 0.0) -> Tensor:
    """See `functional.window_attention`, whose arguments these are: a third of the time, though the window is copied.
    The kernel has no second derivatives: if gradients are wanted, the plain function stands in.
    """
    k_window, v_window, mask, *sink_logits = held
    plain = any(each is not None for each in sink_logits) or softcap or torch.is_grad_enabled() or not q.numel()
    if plain or q.device.type not in FUSED or mask.dtype != torch.bool or mask.shape[1] != 1:
        return functional.window_attention(q, k, v, *held, scale=scale, softcap=softcap)
    rows, tokens = group(q, k.shape[1]).flatten(2, 3), k.shape[2]  # [B, Hkv, G*T, D]
    if tokens > 1:
        mask = mask.repeat(1, 1, rows.shape[2] // tokens, 1)
    keys, values = torch.cat([k_window, k], 2), torch.cat([v_window, v], 2)
    out = torch.nn.functional.scaled_dot_product_attention(rows, keys, values, mask, scale=scale)
    return out.view(*q.shape[:3], v.shape[3])
