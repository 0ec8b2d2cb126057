"""How far apart two results are. NaN equals nothing: it makes every distance infinite."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sleepc.errors import SleepcError

AT_ONCE = 1 << 18  # numbers that are compared at once: what is held of them stays in a processor's cache


def max_error(a: Tensor, b: Tensor) -> float:
    """The largest |a - b| over max(1, the largest finite |b|), in float64; b is the reference.

    Equal infinities do not differ; NaN, or an infinity on one side, gives inf. Raises
    SleepcError if the shapes differ: broadcasting would hide an error.
    """
    largest, scale = _furthest(a, b)
    return largest / max(scale, 1.0)


def absolute_error(a: Tensor, b: Tensor) -> float:
    """The largest |a - b|; else as `max_error`."""
    return _furthest(a, b)[0]


def _furthest(a: Tensor, b: Tensor) -> tuple[float, float]:
    """The largest |a - b|, and the largest finite |b|."""
    _check_shapes(a, b)
    largest = scale = 0.0
    for x, y in zip(_pieces(a), _pieces(b), strict=True):
        x, y = x.to("cpu", torch.float64), y.to("cpu", torch.float64)
        difference = (x - y).abs()
        found, size = float(difference.max()), float(y.abs().max())
        if not (math.isfinite(found) and math.isfinite(size)):
            found = float(torch.where(x == y, 0.0, difference).max())
            size = float(torch.where(y.isfinite(), y, 0.0).abs().max())
        if math.isnan(found):
            return math.inf, 0.0
        largest, scale = max(largest, found), max(scale, size)
    return largest, scale


def _pieces(x: Tensor) -> tuple[Tensor, ...]:
    return torch.split(x.detach().reshape(-1), AT_ONCE) if x.numel() else ()


def kl(p_logits: Tensor, q_logits: Tensor) -> float:
    """The mean over all rows of KL(p || q), in nats; logits [..., V], in float64.

    -inf is a word that cannot come. NaN, or a word that p allows and q does not, gives inf. Raises
    SleepcError if the shapes differ or there is no row.
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
