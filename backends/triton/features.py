"""The L2 norm, and one token of the short convolution, by kernels; else as PyTorch computes them, and in code that is
compiled, which has no launch for them.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from torch.compiler import is_compiling

from sleepc.backends.triton import launch
from sleepc.backends.triton.choices import WIDEST, Problem
from sleepc.backends.triton.kernels import features
from sleepc.backends.triton.launch import NAMES, wants_gradients
from sleepc.ops import functional

ROWS = 16
"""Heads that a program has."""


def l2norm(x: Tensor) -> Tensor:
    """See `sleepc.ops.functional.l2norm`."""
    if is_compiling() or wants_gradients(x) or x.dtype not in NAMES or not x.numel() or x.shape[-1] > WIDEST:
        return functional.l2norm(x)
    made = torch.empty(x.shape, dtype=launch.working(x), device=x.device)
    count = x.numel() // x.shape[-1]
    it = _problem(x.shape[-1], ROWS, x)
    launch.start(features.l2norm, it, int(triton.cdiv(count, ROWS)), x.contiguous(), made, count)
    return made.to(x.dtype)


def short_conv(x: Tensor, weight: Tensor, tail: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """See `sleepc.ops.functional.short_conv`."""
    rows, tokens, channels = x.shape
    known = tokens == 1 and rows > 0 and weight.shape[1] > 1 and {x.dtype, weight.dtype, tail.dtype} <= NAMES.keys()
    if is_compiling() or not known or launch.working(tail) != tail.dtype or wants_gradients(x, weight, tail):
        return functional.short_conv(x, weight, tail, lengths)
    made = torch.empty(x.shape, dtype=launch.working(x), device=x.device)
    after = torch.empty(tail.shape, dtype=tail.dtype, device=x.device)
    it = _problem(weight.shape[1], channels, x)
    given = (x.contiguous(), weight.contiguous(), tail.contiguous(), lengths, made, after)
    launch.start(features.convolve, it, rows, *given)
    return made.to(x.dtype), after


def _problem(dk: int, size: int, x: Tensor) -> Problem:
    return Problem(dk, size, ROWS, NAMES[launch.working(x)], corrects=False, decay="", exact="")
