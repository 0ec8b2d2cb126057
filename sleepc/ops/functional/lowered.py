"""What passes/lower makes of patterns: the numbers of the operators that it stands for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


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


def linears(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] | None = None, *, width: int = 0
) -> list[Tensor]:
    """Linear maps of one value: x [.., d], weights [n_i, d], biases [n_i] -> [.., n_i] each.

    With `width` D of x [B, T, d] as heads: [B, n_i / D, T, D] each.
    """
    results = [functional.linear(x, *each) for each in (zip(weights, biases, strict=True) if biases else zip(weights))]
    if not width:
        return results
    heads = [y.view(*y.shape[:2], y.shape[2] // width, width).transpose(1, 2) for y in results]
    return [y.clone(memory_format=torch.contiguous_format) for y in heads]
