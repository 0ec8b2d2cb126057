"""Grouped queries: heads that share a KV head are rows of one product; nothing is repeated."""

from __future__ import annotations

from torch import Tensor


def group(q: Tensor, heads: int) -> Tensor:
    """[B, Hq, ...] -> [B, heads, Hq // heads, ...]; ValueError if that does not divide."""
    count = q.shape[1]
    if count % heads:
        raise ValueError(f"{count} query heads are not a multiple of {heads} KV heads")
    return q.reshape(q.shape[0], heads, count // heads, *q.shape[2:])
