"""What stands around a memory by kernels, one launch each; else as PyTorch computes it, and in code that is compiled,
where it is part of other launches.

A program has these operators after stage `lower` alone (`FUSED`), which this backend runs for itself: no artifact has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor
from torch.compiler import is_compiling

from sleepc.backends.triton import launch
from sleepc.backends.triton.choices import SHORTEST, WIDEST, Problem
from sleepc.backends.triton.kernels import fused
from sleepc.backends.triton.launch import NAMES, wants_gradients
from sleepc.ops import functional


def masked_l2norm(x: Tensor, real: Tensor) -> Tensor:
    """See `sleepc.ops.functional.masked_l2norm`."""
    if not _has_kernel(x.shape[3], x):
        return functional.masked_l2norm(x, real)
    made = torch.empty(x.shape, dtype=launch.working(x), device=x.device)
    _start(fused.masked_l2norm, _of_heads(x), x.shape, x, real, made)
    return made.to(x.dtype)


def gates(real: Tensor, strengths: Tensor, decays: Tensor | None = None, rate: Tensor | None = None) -> list[Tensor]:
    """See `sleepc.ops.functional.gates`."""
    more = () if decays is None or rate is None else (decays, rate)
    if not _has_kernel(1, strengths, *more):
        return functional.gates(real, strengths, *more)
    rows, tokens, heads = strengths.shape
    made = torch.empty(0, dtype=launch.working(strengths), device=real.device)
    beta, wide = made.new_empty(rows, heads, tokens), (more[0].shape[2] // heads if more else 1)
    g = made.new_empty((rows, heads, tokens, wide) if wide > 1 else beta.shape) if more else beta
    form = "" if not more else "head" if wide == 1 else "channel"
    it = _problem(wide, heads * wide, strengths, form)
    given = (real, strengths, *(more or (strengths, strengths)), beta, g)
    _start(fused.gates, it, (rows, heads, tokens), *given, count=rows * tokens)
    return [x.to(strengths.dtype) for x in ((beta, g) if more else (beta,))]


def mixed(window: Tensor, memory: Tensor, share: Tensor, live: Tensor) -> Tensor:
    """See `sleepc.ops.functional.mixed`."""
    if not _has_kernel(window.shape[3], window, memory, share):
        return functional.mixed(window, memory, share, live)
    made = torch.empty(window.shape, dtype=launch.working(window), device=window.device)
    _start(fused.mixed, _of_heads(window), window.shape, window, memory, share, live, made)
    return made.to(window.dtype)


def gated_norm(x: Tensor, weight: Tensor, opening: Tensor, *, eps: float) -> Tensor:
    """See `sleepc.ops.functional.gated_norm`."""
    if not _has_kernel(x.shape[3], x, weight, opening):
        return functional.gated_norm(x, weight, opening, eps=eps)
    made = torch.empty(opening.shape, dtype=launch.working(opening), device=x.device)
    _start(fused.gated_norm, _of_heads(x), x.shape, x, weight, opening, made, more=(eps,))
    return made.to(opening.dtype)


def _start(
    kernel: Any, it: Problem, shape: Sequence[int], *given: Tensor, count: int = 0, more: Sequence[float] = ()
) -> None:
    """On heads [B, H, T], or `count` of something else, in as many programs as it takes."""
    rows, heads, tokens = shape[:3]
    number = count or rows * heads * tokens
    blocks = int(triton.cdiv(number, it.chunk))
    launch.start(kernel, it, blocks, *(x.contiguous() for x in given), number, tokens, heads, *more)


def _has_kernel(width: int, *given: Tensor) -> bool:
    known = {x.dtype for x in given} <= NAMES.keys() and all(x.numel() for x in given) and width <= WIDEST
    return known and not is_compiling() and not wants_gradients(*given)


def _of_heads(x: Tensor) -> Problem:
    return _problem(x.shape[3], x.shape[3], x)


def _problem(dk: int, dv: int, x: Tensor, decay: str = "") -> Problem:
    return Problem(dk, dv, SHORTEST, NAMES[launch.working(x)], corrects=False, decay=decay, exact="")
