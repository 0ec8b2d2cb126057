"""The delta rule as a function that gradients go through, by kernels both ways."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sleepc.backends.triton import launch
from sleepc.backends.triton.choices import Problem
from sleepc.backends.triton.kernels import gradients
from sleepc.backends.triton.launch import Advance, WrittenTokens, start


class DeltaRule(torch.autograd.Function):
    """q, k, v, g, beta, state -> what is read and state', as `launch.advance` and `answer` have it. What lies between
    is computed again for the gradients: less memory is held. There are no second derivatives.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, scale: float, it: Problem
    ) -> tuple[Tensor, Tensor]:
        """All are contiguous; g is [B, H, T]."""
        ctx.save_for_backward(q, k, v, g, beta, state)
        ctx.scale, ctx.problem = scale, it
        t = WrittenTokens(k, v, g, beta)
        done = launch.advance(t, state, it)
        return launch.answer(q, t, done, scale, it), done.end

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor, d_end: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the six tensors."""
        q, k, v, g, beta, state = ctx.saved_tensors
        t = WrittenTokens(k, v, g, beta)
        done = launch.advance(t, state, ctx.problem)
        given = d_out.contiguous(), d_end.contiguous()
        return (*_gradients(q, t, done, given, ctx.scale, ctx.problem), None, None)


def _gradients(
    q: Tensor, t: WrittenTokens, done: Advance, given: tuple[Tensor, Tensor], scale: float, it: Problem
) -> tuple[Tensor, ...]:
    (rows, memories, count), (d_out, d_end) = t.v.shape[:3], given
    heads, shares = launch.shared(q, memories)
    counts = (count, scale, shares[0], t.shared_keys, shares[1])
    chunks = done.starts.shape[2]
    d_writes, ends, d_state = torch.empty_like(done.writes), torch.empty_like(done.starts), torch.empty_like(d_end)
    start(gradients.spread, it, t.memories * chunks, q, t.k, t.g, d_out, d_writes, *counts)
    between = (q, t.k, done.w, t.g, d_out, d_writes, d_end, ends, d_state)
    start(gradients.carry_back, it, t.memories, *between, *counts)
    d_q, d_read = (t.empty.new_empty(rows, heads, count, it.dk) for _ in range(2))
    d_kept, d_k = (t.empty.new_zeros(rows, memories, count, it.dk) for _ in range(2))
    d_right, d_v = torch.empty_like(d_writes), torch.empty_like(d_writes)
    d_g, d_faded, d_beta = (torch.zeros_like(t.beta, dtype=torch.float32) for _ in range(3))
    d_asked = d_g.new_zeros(rows, heads, count)
    of_queries = (q, t.k, t.g, done.starts, done.writes, d_out, d_q, d_read, d_asked)
    start(gradients.of_queries, it, rows * heads * chunks, *of_queries, *counts)
    of_states = (t.k, t.g, done.starts, ends, done.writes, d_kept, d_faded, count, t.shared_keys)
    start(gradients.of_states, it, t.memories * chunks, *of_states)
    start(gradients.unsolve, it, t.memories * chunks, done.x, t.beta, d_writes, d_right, d_v, count)
    of_rights = (t.k, t.v, t.g, t.beta, done.starts, done.writes, d_right, d_k, d_g, d_beta, count, t.shared_keys)
    start(gradients.of_rights, it, t.memories * chunks, *of_rights)
    d_k = _summed(d_k + d_kept + _summed(d_read, memories), t.k.shape[1])
    made = (_summed(d_q, q.shape[1]), d_k, d_v, d_g + d_faded + _summed(d_asked, memories), d_beta)
    return (*(x.to(like.dtype) for x, like in zip(made, (q, t.k, t.v, t.g, t.beta), strict=True)), d_state)


def _summed(x: Tensor, heads: int) -> Tensor:
    """[B, n heads, ..] -> [B, heads, ..]: over the heads that share one."""
    return x.view(x.shape[0], heads, -1, *x.shape[2:]).sum(2)
