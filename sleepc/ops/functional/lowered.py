"""What passes/lower makes of patterns: the same numbers, to the bit, as the operators that it stands for."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """x rsqrt(mean x^2 + eps) weight over the last dimension (Zhang and Sennrich, arXiv 1910.07467).

    x [.., d], weight [d], both of one dtype, which is computed in -> [.., d].
    """
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x cos + (-x2, x1) sin, x1 and x2 being the halves of a head (Su et al., arXiv 2104.09864).

    x [B, H, T, D]; cos and sin [B, T, D], of which the first D / 2 are read: both halves turn by the same angles
    -> [B, H, T, D].
    """
    first, second = x.chunk(2, -1)
    cos, sin = (torch.cat([table.chunk(2, -1)[0]] * 2, -1).unsqueeze(1) for table in (cos, sin))
    return x * cos + torch.cat([-second, first], -1) * sin
