"""What passes/lower makes of what stands around a memory, for kernels of GPUs: keys, gates, the mix, the output norm.

Everywhere: real bool [B, T] is false at padding; results have the dtype of what is computed in.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

from sleepc.ops.functional.features import l2norm


def masked_l2norm(x: Tensor, real: Tensor) -> Tensor:
    """`l2norm` of x [B, H, T, D], and 0 at padding."""
    return l2norm(x) * real[:, None, :, None]


def gates(real: Tensor, strengths: Tensor, decays: Tensor | None = None, rate: Tensor | None = None) -> list[Tensor]:
    """A memory's gates from their projections, 0 at padding: sigmoid(strengths), and -exp(rate) softplus(decays)
    (Gated DeltaNet, arXiv 2412.06464, section 3.4).

    strengths [B, T, H]; decays [B, T, R] and rate [R], or neither; R is H or, with decay per channel, H dk
    -> beta [B, H, T], and g [B, H, T] or [B, H, T, dk] if there are decays.
    """
    mask, heads = real.unsqueeze(-1), strengths.shape[2]
    made = [(strengths.sigmoid() * mask).transpose(1, 2)]
    if decays is not None and rate is not None:
        g = -(softplus(decays) * rate.exp()) * mask
        made.append((g if g.shape[2] == heads else g.view(*g.shape[:2], heads, g.shape[2] // heads)).transpose(1, 2))
    return [x.clone(memory_format=torch.contiguous_format) for x in made]


def mixed(window: Tensor, memory: Tensor, share: Tensor, live: Tensor) -> Tensor:
    """window + m (memory - window), m = sigmoid(share), 0 in rows that have not slept.

    window [B, H, T, D], memory [B, H, T, D], share [B, T, H], live bool [B] -> [B, H, T, D] in window's dtype; it is
    computed in that of memory.
    """
    m = (share.sigmoid().transpose(1, 2) * live[:, None, None]).unsqueeze(-1)
    wide = window.to(memory.dtype)
    return (wide + m * (memory - wide)).to(window.dtype)


def gated_norm(x: Tensor, weight: Tensor, opening: Tensor, *, eps: float) -> Tensor:
    """x rsqrt(mean x^2 + eps) weight of every head, times silu(opening) (Gated DeltaNet, arXiv 2412.06464).

    x [B, H, T, D], weight [D], opening [B, T, H D] -> [B, T, H D].
    """
    normed = x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps) * weight
    return normed.transpose(1, 2).flatten(2) * silu(opening)
