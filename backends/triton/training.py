"""Gradients of the delta rule and of replay by kernels. What lies between is computed again: less memory is held."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor

from sleepc.backends.triton import launch
from sleepc.backends.triton.choices import Problem
from sleepc.backends.triton.kernels import channels, gradients
from sleepc.backends.triton.launch import Advance, WrittenTokens, start


@dataclass
class OfTokens:
    """Gradients of what is written: k and v as the kernels make them, g and beta in float32. That of g is still to be
    summed over chunks in `total`, where decay is per channel.
    """

    k: Tensor
    v: Tensor
    g: Tensor
    beta: Tensor
    total: Tensor | None = None

    def like(self, t: WrittenTokens, it: Problem) -> tuple[Tensor, ...]:
        """In the types of the tokens."""
        if self.total is not None:
            start(channels.of_sums, it, t.memories * launch.chunks(t, it), self.total, self.g, t.v.shape[2])
        pairs = zip((self.k, self.v, self.g, self.beta), (t.k, t.v, t.g, t.beta), strict=True)
        return tuple(x.to(known.dtype) for x, known in pairs)


def of_stream(
    q: Tensor, t: WrittenTokens, state: Tensor, given: tuple[Tensor, Tensor], scale: float, it: Problem
) -> tuple[Tensor, ...]:
    """Gradients of q, k, v, g, beta and the state, `given` those of what was read and of the state after."""
    done, (d_out, d_end) = launch.advance(t, state, it), given
    heads, shares = launch.shared(q, t.v.shape[1])
    counts = (q.shape[2], scale, shares[0], t.shared_keys, shares[1])
    d_writes, scores = torch.empty_like(done.writes), launch.scores(q, t, done.g, heads, it)
    spread = (q, t.k, done.g, scores, d_out, d_writes, *counts)
    start(gradients.spread, it, t.memories * launch.chunks(t, it), *spread)
    ends, d_state = _carried_back(q, t, done, (d_out, d_writes, d_end), counts, it)
    made = _of_writes(t, done, d_writes, ends, it)
    d_q, d_k, d_g = _of_reads(q, t, done, d_out, counts, it)
    made.k += _summed(_summed(d_k, t.v.shape[1]), t.k.shape[1])
    if it.decay:
        into = made.g if made.total is None else made.total
        into += _summed(d_g, t.v.shape[1])
    return (_summed(d_q, q.shape[1]).to(q.dtype), *made.like(t, it), d_state)


def of_replay(
    t: WrittenTokens, state: Tensor, d_end: Tensor, firsts: int, passes: int, it: Problem
) -> tuple[Tensor, ...]:
    """Gradients of k, v, g, beta and the state after `launch.replay`: pass by pass, from the last to the first."""
    still = replace(it, decay="")
    ways = [it] * firsts + [still] * passes
    ready = {how: launch.prepared(t, how) for how in set(ways)}
    states = [state]
    for how in ways[:-1]:
        states.append(launch.carry(t, ready[how], states[-1], how).end)
    counts = (t.v.shape[2], 1.0, 1, t.shared_keys, 0)  # nobody reads
    found: list[tuple[OfTokens, Problem]] = []
    for how, before in zip(reversed(ways), reversed(states), strict=True):
        done = launch.carry(t, ready[how], before, how)
        d_writes = torch.zeros_like(done.writes)
        ends, d_end = _carried_back(t.k, t, done, (done.writes, d_writes, d_end), counts, how)
        found.append((_of_writes(t, done, d_writes, ends, how), how))
    every = [each.like(t, how) for each, how in found]
    return (*(reduce(torch.add, parts) for parts in zip(*every, strict=True)), d_end)


def _carried_back(
    q: Tensor,
    t: WrittenTokens,
    done: Advance,
    given: tuple[Tensor, Tensor, Tensor],
    counts: tuple[float, ...],
    it: Problem,
) -> tuple[Tensor, Tensor]:
    """Gradients of the states that chunks end with, and of the first; of `given`, d_writes becomes whole."""
    (d_out, d_writes, d_end), ends = given, torch.empty_like(done.starts)
    d_state = torch.empty_like(d_end)
    between = (q, t.k, done.w, done.g, d_out, d_writes, d_end, ends, d_state)
    start(gradients.carry_back, it, t.memories, *between, *counts)
    return ends, d_state


def _of_reads(
    q: Tensor, t: WrittenTokens, done: Advance, d_out: Tensor, counts: tuple[float, ...], it: Problem
) -> tuple[Tensor, ...]:
    """What reading gives for q, k and g, for every head that reads."""
    (rows, heads, count), channel = d_out.shape[:3], it.decay == "channel"
    d_q, d_k = (t.empty.new_empty(rows, heads, count, it.dk) for _ in range(2))
    d_g = torch.zeros(rows, heads, *t.g.shape[2:], dtype=torch.float32, device=q.device)
    made = d_g.new_empty(rows, heads, count, it.chunk) if channel else d_g
    of_queries = (q, t.k, done.g, done.starts, done.writes, d_out, d_q, d_k, d_g, made, *counts)
    start(gradients.of_queries, it, rows * heads * launch.chunks(t, it), *of_queries)
    if channel:
        _of_scores(q, t, done, (made, d_q, d_k, d_g), it)
    return d_q, d_k, d_g


def _of_writes(t: WrittenTokens, done: Advance, d_writes: Tensor, ends: Tensor, it: Problem) -> OfTokens:
    """What the states of chunks, and those that correct in addition, give."""
    (rows, memories, count), channel = t.v.shape[:3], it.decay == "channel"
    blocks = t.memories * launch.chunks(t, it)
    d_kept, d_k = (t.empty.new_zeros(rows, memories, count, it.dk) for _ in range(2))
    d_right, d_v = (torch.empty_like(d_writes) for _ in range(2))
    d_faded, d_g = (torch.zeros_like(t.g, dtype=torch.float32) for _ in range(2))
    d_beta = torch.zeros_like(t.beta, dtype=torch.float32)
    of_states = (t.k, done.g, done.starts, ends, done.writes, d_kept, d_faded, count, t.shared_keys)
    start(gradients.of_states, it, blocks, *of_states)
    start(gradients.unsolve, it, blocks, done.x, t.beta, d_writes, d_right, d_v, count)
    twice = channel and it.corrects
    scores = launch.scores(t.k, t, done.g, memories, it) if twice else done.g
    made = d_beta.new_empty(rows, memories, count, it.chunk) if twice else d_beta
    of_rights = (t.k, t.v, done.g, t.beta, scores, done.starts, done.writes, d_right, d_k, d_g, d_beta, made, count)
    start(gradients.of_rights, it, blocks, *of_rights, t.shared_keys)
    if twice:
        d_column = torch.empty_like(d_k)
        _of_scores(t.k, t, done, (made, d_k, d_column, d_g), it)
        d_kept += d_column
    if not channel:
        d_g += d_faded
    d_k = _summed(d_k + d_kept, t.k.shape[1])
    return OfTokens(d_k, d_v, d_faded if channel else d_g, d_beta, d_g if channel else None)


def _of_scores(rows: Tensor, t: WrittenTokens, done: Advance, given: tuple[Tensor, ...], it: Problem) -> None:
    """See `channels.of_scores`; given are d_made, d_rows, d_k and d_total."""
    heads, memories = given[0].shape[1], t.v.shape[1]
    blocks = rows.shape[0] * heads * launch.chunks(t, it) * (it.chunk // 16)
    shares = (heads // rows.shape[1], t.shared_keys, heads // memories)
    start(channels.of_scores, it, blocks, rows, t.k, done.g, *given, t.v.shape[2], *shares)


def _summed(x: Tensor, heads: int) -> Tensor:
    """[B, n heads, ..] -> [B, heads, ..]: over the heads that share one."""
    return x.view(x.shape[0], heads, -1, *x.shape[2:]).sum(2)
