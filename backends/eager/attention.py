"""Attention over kept keys by PyTorch's own kernel, on devices where it is the faster one and equal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sleepc.ops import functional
from sleepc.ops.functional.heads import group

FUSED = ("cpu",)
"""Devices whose kernel, too, gives zeros to a query that sees nothing."""
TOGETHER = 256  # queries for which keys are looked for: of a longer call the first do not see the last keys
MANY = 64  # queries: for fewer, finding the keys that none of them sees takes longer than it saves


def window_attention(q: Tensor, k: Tensor, v: Tensor, *held: Any, scale: float, softcap: float = 0.0) -> Tensor:
    """See `functional.window_attention`, whose arguments these are: a third of its time, and the window is copied."""
    k_window, v_window, mask, *sink_logits = held
    if not _fuses((q, k, v), mask, sink_logits, softcap):
        return functional.window_attention(q, k, v, *held, scale=scale, softcap=softcap)
    return _fused(q, torch.cat([k_window, k], 2), torch.cat([v_window, v], 2), mask, scale)


def kept_attention(q: Tensor, k: Tensor, v: Tensor, *held: Any, scale: float, softcap: float = 0.0) -> Tensor:
    """See `functional.kept_attention`: less than half of its time for 128 tokens, though all heads get all slots. For
    one token and many slots that costs more than it saves.
    """
    k_window, v_window, mask, k_kept, v_kept, kept_mask, *sink_logits = held
    heads, tokens = k.shape[1], k.shape[2]
    if tokens == 1 or not _fuses((q, k, v), mask, sink_logits, softcap):
        return functional.kept_attention(q, k, v, *held, scale=scale, softcap=softcap)
    keys, values = (
        torch.cat([kept.unsqueeze(1).expand(-1, heads, -1, -1), window, new], 2)
        for kept, window, new in ((k_kept, k_window, k), (v_kept, v_window, v))
    )
    seen = torch.cat([kept_mask, mask.expand(q.shape[0], heads, *mask.shape[2:])], -1)
    return _fused(q, keys, values, seen, scale)


def _fuses(new: Sequence[Tensor], mask: Tensor, sink_logits: Sequence[Tensor | None], softcap: float) -> bool:
    """Can the kernel do it for q, k, v? Its gradients have none of their own: second derivatives are an error. What is
    traced, where a gradient could be asked for and is not, gets plain functions, which compilers join.
    """
    plain = any(each is not None for each in sink_logits) or softcap or not new[0].numel()
    traced = torch.is_grad_enabled() and not any(x.requires_grad for x in new)
    return not plain and not traced and new[0].device.type in FUSED and mask.dtype == torch.bool and mask.shape[1] == 1


def _fused(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float) -> Tensor:
    """q [B,Hq,T,D], keys [B,Hkv,K,D], values [B,Hkv,K,Dv], mask [B or 1,1 or Hkv,T,K] -> [B,Hq,T,Dv]."""
    if q.shape[2] > TOGETHER:
        parts = zip(torch.split(q, TOGETHER, 2), torch.split(mask, TOGETHER, 2), strict=True)
        return torch.cat([_fused(part, keys, values, seen, scale) for part, seen in parts], 2)
    rows = group(q, keys.shape[1]).flatten(2, 3)  # [B, Hkv, G*T, D]
    if q.shape[2] >= MANY:
        keys, values, mask = _seen(keys, values, mask)
    if q.shape[2] > 1:
        mask = mask.repeat(1, 1, rows.shape[2] // q.shape[2], 1)
    out = torch.nn.functional.scaled_dot_product_attention(rows, keys, values, mask, scale=scale)
    return out.view(*q.shape[:3], values.shape[3])


def _seen(keys: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same without keys that no query sees, if these are many, as before a large window is full: the kernel would
    multiply them too.
    """
    (at,) = mask.flatten(0, 2).any(0).nonzero(as_tuple=True)
    if not 0 < 4 * len(at) < 3 * keys.shape[2]:
        return keys, values, mask
    return keys[:, :, at], values[:, :, at], mask[..., at]
