"""Softmax attention, alone and over a window of kept keys.

Order of the steps: scores * scale, softcap, mask, softmax (float32) with the sink column, values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sleepc.masks import Mask
from sleepc.ops.functional.heads import group
from sleepc.ops.functional.windows import distance_bias, numbers_by_distance


def _seen(mask: Tensor) -> Tensor:
    """Keys that a mask lets through; additive masks hold -inf or a dtype's minimum at others."""
    if mask.dtype == torch.bool:
        return mask
    least = max(torch.finfo(mask.dtype).min, torch.finfo(torch.float32).min)
    return mask > least / 2


def _weights(scores: Tensor, mask: Tensor | None, sink_logits: Tensor | None, scale: float, softcap: float) -> Tensor:
    """Products q k [B, Hq, T, K] -> softmax over K, in float32 (float64 for float64).

    Unseen keys weigh exactly 0, and so does every key of a query that sees none. On the way they
    get the least finite score, not -inf, so that such a query has finite gradients.
    """
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    seen = None if mask is None else _seen(mask)
    if mask is not None and seen is not None:
        if seen is not mask:
            scores = scores + mask.to(scores.dtype)
        scores = torch.where(seen, scores, torch.finfo(scores.dtype).min)
    if sink_logits is None:
        weights = scores.softmax(-1)
    else:
        column = sink_logits.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        weights = torch.cat([scores, column], -1).softmax(-1)[..., :-1]
    return weights if seen is None else torch.where(seen, weights, 0.0)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    sink_logits: Tensor | None = None,
    by_distance: Tensor | None = None,
    *,
    scale: float,
    softcap: float = 0.0,
    causal: bool = False,
    sees: str = "",
    slopes: Sequence[float] = (),
) -> Tensor:
    """Softmax attention of one call's tokens among themselves.

    q [B, Hq, T, D], k [B, Hkv, T, D], v [B, Hkv, T, Dv]; mask [B or 1, 1 or Hq, T, T], bool (True =
    sees) or additive; sink_logits [Hq] that take probability and give no value; softcap c > 0
    bends scores to c tanh(x / c); with `causal` a query sees itself and of what is before it what
    the mask `sees` lets it see (sleepc/masks); `slopes` [Hq] (ALiBi, arXiv 2108.12409), only with
    `causal` and without mask, take slope times distance off the scores; under the same conditions and
    without slopes, `by_distance` [B, Hq, T, R] has the numbers that a query adds to the scores of keys
    0, 1, .. tokens before it, the last for R - 1 tokens and more. -> [B, Hq, T, Dv]; a query that sees
    nothing gets zeros. ValueError if Hq is not a multiple of Hkv.
    """
    options: dict[str, Any] = {"scale": scale, "softcap": softcap, "causal": causal, "sees": sees, "slopes": slopes}
    p = attention_weights(q, k, mask, sink_logits, by_distance, **options).to(v.dtype)
    out = group(p, k.shape[1]).flatten(2, 3) @ v
    return out.view(*q.shape[:3], v.shape[3])


def attention_weights(
    q: Tensor,
    k: Tensor,
    mask: Tensor | None = None,
    sink_logits: Tensor | None = None,
    by_distance: Tensor | None = None,
    *,
    scale: float,
    softcap: float = 0.0,
    causal: bool = False,
    sees: str = "",
    slopes: Sequence[float] = (),
) -> Tensor:
    """What `attention` gives the values, with its arguments: [B, Hq, T, T] in float32 (float64 for float64). Without
    `causal` q may be of some of the tokens, [B, Hq, n, D], with their rows of the mask.
    """
    tokens = k.shape[2]
    if causal:
        token = torch.arange(tokens, device=q.device)
        past = Mask.parse(sees).sees(token[:, None], token)[None, None]
        if slopes:
            past = distance_bias(past, token[None], slopes, torch.float64)
        elif by_distance is not None:
            added = numbers_by_distance(by_distance, (token[:, None] - token)[None, None])
            past = added.masked_fill(~past, -torch.inf)
        mask = past if mask is None else _restrict(mask, past)
    grouped = group(q, k.shape[1])
    scores = (grouped.flatten(2, 3) @ k.mT).view(*q.shape[:3], tokens)
    return _weights(scores, mask, sink_logits, scale, softcap)


def _restrict(mask: Tensor, seen: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return mask & seen
    return mask.masked_fill(~seen, -torch.inf)


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_window: Tensor,
    v_window: Tensor,
    mask: Tensor,
    sink_logits: Tensor | None = None,
    *,
    scale: float,
    softcap: float = 0.0,
) -> Tensor:
    """Softmax attention over the kept window and this call's new tokens.

    q [B, Hq, T, D], k [B, Hkv, T, D], v [B, Hkv, T, Dv], k_window [B, Hkv, W, D], v_window [B, Hkv,
    W, Dv], mask [B or 1, 1 or Hq, T, W + T] (slots first; bool from `window_mask`, or additive),
    sink_logits [Hq] -> [B, Hq, T, Dv]; a query that sees nothing gets zeros. ValueError if Hq
    is not a multiple of Hkv.
    """
    heads = k.shape[1]
    rows = group(q, heads).flatten(2, 3)  # [B, Hkv, G*T, D]
    width = k_window.shape[2]
    # window and new keys are multiplied apart: joining them would copy the window for every token
    scores = torch.cat([rows @ k_window.mT, rows @ k.mT], -1)
    scores = scores.view(*q.shape[:3], width + k.shape[2])
    p = group(_weights(scores, mask, sink_logits, scale, softcap).to(v.dtype), heads).flatten(2, 3)
    out = p[..., :width] @ v_window + p[..., width:] @ v
    return out.view(*q.shape[:3], v.shape[3])


def kept_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_window: Tensor,
    v_window: Tensor,
    mask: Tensor,
    k_kept: Tensor,
    v_kept: Tensor,
    kept_mask: Tensor,
    sink_logits: Tensor | None = None,
    *,
    scale: float,
    softcap: float = 0.0,
) -> Tensor:
    """`window_attention` that also sees pairs that the sleeps have kept, in one softmax with the others.

    k_kept [B, S, D], v_kept [B, S, Dv] are those of all KV heads, one after the other, kept_mask bool [B, Hkv, T, S]
    says which of them the queries of a KV head see; mask is bool [B or 1, 1 or Hq, T, W + T], all others as in
    `window_attention`.
    """
    heads, width, slots = k.shape[1], k_window.shape[2], k_kept.shape[1]
    rows = group(q, heads).flatten(2, 3)
    parts = (q.flatten(1, 2) @ k_kept.mT, rows @ k_window.mT, rows @ k.mT)  # a head's few slots: no copies for each
    scores = torch.cat([part.reshape(*q.shape[:3], part.shape[-1]) for part in parts], -1)
    kept = kept_mask.repeat_interleave(q.shape[1] // heads, 1)
    seen = torch.cat([kept, mask.expand(q.shape[0], q.shape[1], *mask.shape[2:])], -1)
    p = _weights(scores, seen, sink_logits, scale, softcap).to(v.dtype)
    out = (p[..., :slots].flatten(1, 2) @ v_kept).view(*q.shape[:3], v.shape[3])
    others = group(p[..., slots:], heads).flatten(2, 3)
    window = others[..., :width] @ v_window + others[..., width:] @ v
    return out + window.view(out.shape)
