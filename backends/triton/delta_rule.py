"""The memory's operators by kernels, where these have a form for them; else as PyTorch computes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sleepc.backends.triton.choices import WIDEST, chunk_of
from sleepc.backends.triton.launch import NAMES, WrittenTokens, advance, answer, problem
from sleepc.memory.registry import find
from sleepc.ops import functional

FAMILY = ("linear", "gated", "delta", "gated_delta")
"""The rules that the kernels know."""


def has_kernel(k: Tensor, v: Tensor, g: Tensor, state: Sequence[Tensor], rule: str) -> bool:
    """Is there a kernel for tokens of these shapes and types?"""
    sizes = max(k.shape[3], v.shape[3]) <= WIDEST and v.numel() > 0
    types = k.dtype in NAMES and v.dtype == k.dtype and all(x.dtype == torch.float32 for x in state)
    return rule in FAMILY and sizes and types and g.dim() == 3


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    state: Sequence[Tensor],
    gates: Sequence[Tensor] | None = None,
    *,
    rule: str,
    scale: float,
    chunk: int = 64,
) -> list[Tensor]:
    """See `sleepc.ops.functional.delta_rule`. The state is float32; bfloat16 and float16 are multiplied as they are.
    `chunk` is rounded to what there is a kernel for.
    """
    if not has_kernel(k, v, g, state, rule):
        return functional.delta_rule(q, k, v, g, beta, state, gates, rule=rule, scale=scale, chunk=chunk)
    how, tokens = find(rule), WrittenTokens(*(x.contiguous() for x in (k, v, g, beta)))
    it = problem(tokens, chunk=chunk_of(v.shape[2], chunk), corrects=how.corrects, decays=how.decays)
    starts, writes, end = advance(tokens, state[0].contiguous(), it)
    return [answer(q.to(k.dtype).contiguous(), tokens, starts, writes, scale, it).to(q.dtype), end]
