"""What passes/lower makes of patterns: the same numbers, to the bit, as the operators that it stands for."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """x rsqrt(mean x^2 + eps) weight over the last dimension (Zhang and Sennrich, arXiv 1910.07467).

    x [.., d], weight [d], both of one dtype, which is computed in -> [.., d].
    """
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))
