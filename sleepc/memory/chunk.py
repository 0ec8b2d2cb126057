"""The delta rule over one chunk of tokens at once.

Source: Yang, Kautz, Hatamizadeh, Gated Delta Networks, arXiv 2412.06464, section 3.3 (the WY form
with decay); decay per channel as in Gated Linear Attention, arXiv 2312.06635, section 4.3
(secondary chunking).

B batch, H memories (KV heads), n groups of rows that share a memory, C tokens of the chunk.
Only differences G_i - G_j with j <= i are ever exponentiated: they are <= 0, so nothing overflows.
"""

from __future__ import annotations

import torch
from torch import Tensor

SUB_BLOCK = 16  # tokens per explicit [16, 16, dk] block of differences, for decay per channel


def decay_products(total: Tensor) -> Tensor:
    """exp(G_i - G_j) for j <= i, else at most 1. [B, H, C, ...] -> [B, H, C, C, ...]."""
    return (total[:, :, :, None] - total[:, :, None]).clamp(max=0).exp()


def before(values: Tensor, first: float) -> Tensor:
    """What stands after the token before, of values after every token [B,H,C,..]; `first` before the first one."""
    return torch.cat([torch.full_like(values[:, :, :1], first), values[:, :, :-1]], 2)


def _product(rows: Tensor, matrix: Tensor) -> Tensor:
    """[B, H, n, C, x] times [B, H, x, y] -> [B, H, n, C, y], without a copy of the matrix per n."""
    return (rows.flatten(2, 3) @ matrix).view(*rows.shape[:4], matrix.shape[3])


def _scores_per_channel(rows: Tensor, keys: Tensor, total: Tensor) -> Tensor:
    """`decayed_scores` for decay per key channel, SUB_BLOCK tokens at a time."""
    size = keys.shape[2]
    bands = []
    for start in range(0, size, SUB_BLOCK):
        stop = min(start + SUB_BLOCK, size)
        own, here = total[:, :, start:stop], rows[:, :, :, start:stop]
        near = keys[:, :, None, start:stop] * decay_products(own)
        band = [torch.einsum("bhnic,bhijc->bhnij", here, near).tril()]
        if start:
            # measured from the block's first token, both exponents are <= 0
            origin = own[:, :, :1]
            left = here * (own - origin).exp()[:, :, None]
            right = keys[:, :, :start] * (origin - total[:, :, :start]).exp()
            band.insert(0, _product(left, right.mT))
        if stop < size:
            band.append(rows.new_zeros(*here.shape[:4], size - stop))
        bands.append(torch.cat(band, -1))
    return torch.cat(bands, -2)


def decayed_scores(rows: Tensor, keys: Tensor, total: Tensor) -> Tensor:
    """sum_c rows[i, c] keys[j, c] exp(total[i, c] - total[j, c]) for j <= i, and zero above the diagonal.

    rows [B, H, n, C, dk], keys [B, H, C, dk], total (sums of g up to and including a token) [B, H,
    C] or [B, H, C, dk] -> [B, H, n, C, C].
    """
    if total.dim() == 4:
        return _scores_per_channel(rows, keys, total)
    return (_product(rows, keys.mT) * decay_products(total)[:, :, None]).tril()


def delta_chunk(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    state: Tensor,
    *,
    corrects: bool,
) -> tuple[Tensor | None, Tensor]:
    """One chunk of the memory update, and what q [B, H, n, C, dk] reads on the way.

    k [B, H, C, dk], v [B, H, C, dv], g [B, H, C] or [B, H, C, dk] (<= 0, log space), beta [B, H,
    C], state [B, H, dk, dv] -> (read [B, H, n, C, dv] or None if q is None, new state).
    """
    total = g.cumsum(2)
    decay = total[..., None] if total.dim() == 3 else total
    fade, strength = decay.exp(), beta[..., None]
    written, strong = strength * v, strength * k
    rows = [*([strong[:, :, None]] if corrects else []), *([] if q is None else [q])]
    scores = decayed_scores(rows[0] if len(rows) == 1 else torch.cat(rows, 2), k, total) if rows else None
    if corrects:
        assert scores is not None
        # (I + A) V' = beta (V - exp(G) K S); the solver takes the diagonal as 1 whatever it holds
        target = written - (fade * strong) @ state
        written = torch.linalg.solve_triangular(scores[:, :, 0], target, upper=False, unitriangular=True)
    out = None
    if q is not None:
        assert scores is not None
        seen = scores[:, :, 1:] if corrects else scores
        out = _product(fade[:, :, None] * q, state) + _product(seen, written)
    left = (decay[:, :, -1:] - decay).exp() * k  # of each key when the chunk is over
    return out, fade[:, :, -1:].mT * state + left.mT @ written


def delta_step(k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, *, corrects: bool) -> Tensor:
    """One token of the memory update: S' = exp(g) S + k (x) beta (v - exp(g) S^T k).

    k [B, H, dk], v [B, H, dv], g [B, H] or [B, H, dk], beta [B, H], state [B, H, dk, dv]
    -> new state.
    Source: arXiv 2412.06464, equation 10.
    """
    fade = g.exp()
    state = state * (fade[..., None, None] if g.dim() == 2 else fade[..., None])
    if corrects:
        v = v - (k[:, :, None] @ state)[:, :, 0]
    return state + k[..., None] * (beta[..., None] * v)[:, :, None]
