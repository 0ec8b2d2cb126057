"""Kernels started on tensors: room for results, grids, and which kernel follows which."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
from torch import Tensor

from sleepc.backends.triton.choices import Problem, choose
from sleepc.backends.triton.kernels import channels, chunked, replayed, single

INTERPRETED: bool = triton.knobs.runtime.interpret
"""Do kernels run in Triton's interpreter, on the CPU? It multiplies bfloat16 wrongly, without an error: there all is
multiplied, and stored, in float32."""
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Started:
    """A kernel, what it is compiled for, on how many programs it is started, and its arguments, in order."""

    kernel: Any
    problem: Problem
    programs: int
    arguments: tuple[Any, ...]


_RECORD: ContextVar[list[Started] | None] = ContextVar("record", default=None)


@contextmanager
def recorded() -> Iterator[list[Started]]:
    """Within it kernels are not started but put down: tensors then need no values, nor a device."""
    found: list[Started] = []
    token = _RECORD.set(found)
    try:
        yield found
    finally:
        _RECORD.reset(token)


@dataclass(frozen=True)
class WrittenTokens:
    """What is written: k [B, Hk, T, dk], v [B, H, T, dv], g [B, H, T] or [B, H, T, dk], beta [B, H, T]; H is a multiple
    of Hk. All are contiguous.
    """

    k: Tensor
    v: Tensor
    g: Tensor
    beta: Tensor

    @property
    def memories(self) -> int:
        """Of all rows, B H."""
        return self.v.shape[0] * self.v.shape[1]

    @property
    def shared_keys(self) -> int:
        """The memories that have a key in common."""
        return self.v.shape[1] // self.k.shape[1]

    @property
    def empty(self) -> Tensor:
        """Makes tensors of the type in which these tokens are multiplied, and results are stored."""
        return torch.empty(0, dtype=working(self.k), device=self.k.device)


@dataclass(frozen=True)
class Advance:
    """What all chunks of some tokens gave: decay as the kernels take it (sums, where it is per channel), X and W of
    `chunked.py`, the states that chunks began from [B, H, chunks, dk, dv], what they wrote [B, H, T, dv], and the state
    after them.
    """

    g: Tensor
    x: Tensor
    w: Tensor
    starts: Tensor
    writes: Tensor
    end: Tensor


def working(x: Tensor) -> torch.dtype:
    """The type in which x is multiplied, and results are stored."""
    return torch.float32 if INTERPRETED and x.dtype == torch.bfloat16 else x.dtype


def wants_gradients(*given: Tensor) -> bool:
    """Do gradients go through these?"""
    return torch.is_grad_enabled() and any(x.requires_grad for x in given)


def problem(t: WrittenTokens, *, chunk: int, corrects: bool, decays: bool) -> Problem:
    """What the kernels for these tokens are compiled for."""
    decay = ("channel" if t.g.dim() == 4 else "head") if decays else ""
    return Problem(t.k.shape[3], t.v.shape[3], chunk, NAMES[working(t.k)], corrects, decay, _exact())


def reading(q: Tensor, state: Tensor, chunk: int) -> Problem:
    """What the kernel for these queries is compiled for."""
    dk, dv = state.shape[2:]
    return Problem(dk, dv, chunk, NAMES[working(q)], corrects=False, decay="", exact=_exact())


def _exact() -> str:
    return "ieee" if torch.version.hip or INTERPRETED else "tf32x3"


def start(kernel: Any, it: Problem, blocks: int, *arguments: Any) -> None:
    """Start a kernel on as many programs as `blocks`, times the parts of the values' columns where it has these."""
    how = choose(kernel.fn.__name__, kernel.arg_names, it)
    record = _RECORD.get()
    if record is not None:
        record.append(Started(kernel, it, blocks * how.columns, arguments))
    else:
        kernel[(blocks * how.columns,)](*arguments, **how.constants, **how.options)


def chunks(t: WrittenTokens, it: Problem) -> int:
    """Of the tokens."""
    return int(triton.cdiv(t.v.shape[2], it.chunk))


def sums(t: WrittenTokens, it: Problem) -> Tensor:
    """Decay as the kernels take it: summed from the start of every chunk, if it is per channel."""
    if it.decay != "channel":
        return t.g
    total = torch.empty(t.g.shape, dtype=torch.float32, device=t.g.device)
    start(channels.sums, it, t.memories * chunks(t, it), t.g, total, t.g.shape[2])
    return total


def scores(rows: Tensor, t: WrittenTokens, g: Tensor, heads: int, it: Problem) -> Tensor:
    """With decay per channel, what rows [B, H', T, dk] make with keys in a chunk, for `heads` heads; else nothing."""
    if it.decay != "channel":
        return g
    count = g.shape[2]
    made = torch.empty(g.shape[0], heads, count, it.chunk, dtype=torch.float32, device=g.device)
    blocks = g.shape[0] * heads * triton.cdiv(count, it.chunk) * (it.chunk // 16)
    shares = (heads // rows.shape[1], t.shared_keys, heads // g.shape[1])
    start(channels.scores, it, blocks, rows, t.k, g, made, count, *shares)
    return made


def prepare(t: WrittenTokens, g: Tensor, it: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """X, W and U, of which a chunk's V' is made: U - W S."""
    if not it.corrects:
        return t.k, t.k, t.v
    rows, heads, count = t.v.shape[:3]
    x = t.empty.new_empty(rows, heads, count, it.chunk)
    w, u = t.empty.new_empty(rows, heads, count, it.dk), t.empty.new_empty(t.v.shape)
    seen = scores(t.k, t, g, heads, it)
    blocks = t.memories * chunks(t, it)
    start(chunked.solve, it, blocks, t.k, g, t.beta, seen, x, count, t.shared_keys)
    start(chunked.prepare, it, blocks, t.k, t.v, g, t.beta, x, w, u, count, t.shared_keys)
    return x, w, u


@dataclass(frozen=True)
class Prepared:
    """What needs no state: decay as the kernels take it, and what `prepare` makes."""

    g: Tensor
    x: Tensor
    w: Tensor
    u: Tensor


def prepared(t: WrittenTokens, it: Problem) -> Prepared:
    """All chunks of the tokens, before any state is known."""
    g = sums(t, it)
    return Prepared(g, *prepare(t, g, it))


def carry(t: WrittenTokens, ready: Prepared, state: Tensor, it: Problem) -> Advance:
    """All chunks of the tokens, from state [B, H, dk, dv]."""
    starts = t.empty.new_empty(*t.v.shape[:2], chunks(t, it), it.dk, it.dv)
    done = Advance(ready.g, ready.x, ready.w, starts, t.empty.new_empty(t.v.shape), torch.empty_like(state))
    given = (t.k, ready.w, ready.u, ready.g, t.beta, state, starts, done.writes, done.end)
    start(chunked.carry, it, t.memories, *given, t.v.shape[2], t.shared_keys)
    return done


def advance(t: WrittenTokens, state: Tensor, it: Problem) -> Advance:
    """Both."""
    return carry(t, prepared(t, it), state, it)


def answer(q: Tensor, t: WrittenTokens, done: Advance, scale: float, it: Problem) -> Tensor:
    """What queries [B, Hq, T, dk] read on the way -> [B, max(Hq, H), T, dv]; one of Hq and H is a multiple of the
    other.
    """
    heads, shares = shared(q, t.v.shape[1])
    count = q.shape[2]
    out = t.empty.new_empty(q.shape[0], heads, count, it.dv)
    seen = scores(q, t, done.g, heads, it)
    blocks = q.shape[0] * heads * triton.cdiv(count, it.chunk)
    counts = (shares[0], t.shared_keys, shares[1])
    start(chunked.read, it, blocks, q, t.k, done.writes, done.g, seen, done.starts, out, count, scale, *counts)
    return out


def shared(q: Tensor, memories: int) -> tuple[int, tuple[int, int]]:
    """The heads that read, and how many of them share a query and a memory."""
    heads = max(q.shape[1], memories)
    return heads, (heads // q.shape[1], heads // memories)


def step(q: Tensor, t: WrittenTokens, state: Tensor, scale: float, it: Problem) -> tuple[Tensor, Tensor]:
    """One token: what its queries [B, Hq, 1, dk] read after it was written, and the state."""
    heads, shares = shared(q, t.v.shape[1])
    out, end = t.empty.new_empty(q.shape[0], heads, 1, it.dv), torch.empty_like(state)
    counts = (shares[0], t.shared_keys, shares[1])
    start(single.step, it, t.memories, q, t.k, t.v, t.g, t.beta, state, end, out, scale, *counts)
    return out, end


def recall(q: Tensor, state: Tensor, scale: float, it: Problem) -> Tensor:
    """What queries [B, Hq, T, dk] read from a memory [B, H, dk, dv] as it is -> [B, max(Hq, H), T, dv]."""
    heads, shares = shared(q, state.shape[1])
    count = q.shape[2]
    out = torch.empty(q.shape[0], heads, count, it.dv, dtype=working(q), device=q.device)
    blocks = q.shape[0] * heads * triton.cdiv(count, it.chunk)
    start(single.recall, it, blocks, q, state, out, count, scale, *shares)
    return out


def replay(t: WrittenTokens, state: Tensor, firsts: int, passes: int, it: Problem) -> Tensor:
    """The state after `firsts` passes (1, or 0) over a window, and `passes` without decay."""
    g, still = sums(t, it), replace(it, decay="")
    w, u = prepare(t, g, it)[1:] if firsts else (t.k, t.v)
    again = (w, u)
    if passes and (it.decay or not firsts):
        again = prepare(t, t.g, still)[1:]
    end = torch.empty_like(state)
    counts = (t.v.shape[2], firsts, passes, t.shared_keys)
    start(replayed.replay, it, t.memories, t.k, w, u, *again, g, t.beta, state, end, *counts)
    return end
