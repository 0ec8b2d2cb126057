"""How far apart two results are. NaN equals nothing: it makes every distance infinite."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sleepc.errors import SleepcError


def max_error(a: Tensor, b: Tensor) -> float:
    """The largest |a - b| over max(1, the largest finite |b|), in float64; b is the reference.

    Equal infinities are no difference; NaN, or an infinity on one side, gives inf. Raises
    SleepcError where the shapes differ: broadcasting would hide an error.
    """
    _check_shapes(a, b)
    if a.numel() == 0:
        return 0.0
    a, b = a.detach().to("cpu", torch.float64), b.detach().to("cpu", torch.float64)
    difference = torch.where(a == b, 0.0, (a - b).abs())
    if bool(difference.isnan().any()):
        return math.inf
    scale = torch.where(b.isfinite(), b, 0.0).abs().max().clamp(min=1.0)
    return float(difference.max() / scale)


def kl(p_logits: Tensor, q_logits: Tensor) -> float:
    """The mean over all rows of KL(p || q), in nats; logits [..., V], in float64.

    -inf is a word that cannot come. NaN, or a word that p allows and q does not, gives inf. Raises
    SleepcError where the shapes differ or there is no row.
    """
    _check_shapes(p_logits, q_logits)
    if p_logits.numel() == 0:
        raise SleepcError("there is no row to compare")
    p = p_logits.detach().to("cpu", torch.float64).log_softmax(-1)
    q = q_logits.detach().to("cpu", torch.float64).log_softmax(-1)
    if bool(p.isnan().any() or q.isnan().any()):
        return math.inf
    terms = torch.where(p == -math.inf, 0.0, p.exp() * (p - q))
    mean = float(terms.sum(-1).mean())
    return math.inf if math.isnan(mean) else mean  # 0 * inf: p underflows where q forbids


def _check_shapes(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise SleepcError(f"the shapes differ: {tuple(a.shape)} and {tuple(b.shape)}")
