"""What stands between a projection and the memory: the L2 norm of a head, the short convolution."""

from __future__ import annotations

import torch
from torch import Tensor

L2_EPSILON = 1e-6


def l2norm(x: Tensor) -> Tensor:
    """x * rsqrt(sum x^2 + 1e-6) over the last dimension; [..., D] -> [..., D].

    Computed in float32 (float64 for float64), returned in x's dtype.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + L2_EPSILON)).to(x.dtype)


def short_conv(x: Tensor, weight: Tensor, tail: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Depthwise causal convolution with a carried tail.

    x [B, T, C], weight [C, K], tail [B, C, K-1] (the columns before x), lengths [B] (real tokens of
    a row, packed to the left) -> (y [B, T, C] in x's dtype, tail' [B, C, K-1]: the last K-1 columns
    up to each row's own length).

        y[t] = sum_j weight[:, j] * column[t + j],    column = tail followed by x

    y at padding is the same sum over whatever x holds there. A row of length 0 keeps its tail.
    """
    taps, tokens = weight.shape[1], x.shape[1]
    columns = torch.cat([tail.mT, x.to(tail.dtype)], 1)
    wide = columns.to(torch.promote_types(x.dtype, torch.float32))
    taps_first = weight.to(wide.dtype).T
    y = wide[:, :tokens] * taps_first[0]
    for j in range(1, taps):
        y = torch.addcmul(y, wide[:, j : j + tokens], taps_first[j])
    at = lengths[:, None] + torch.arange(taps - 1, device=x.device)
    kept = columns.gather(1, at[..., None].expand(-1, -1, x.shape[2]))
    return y.to(x.dtype), kept.mT.contiguous()
