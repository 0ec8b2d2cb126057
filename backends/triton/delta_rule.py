"""The memory's operators by kernels, where these have a form for them; else as PyTorch computes them. Gradients go
through kernels too, but for those of reads alone, which are two products of matrices.

Code that is compiled calls them as operators, `library.py`.

`low` is what a program computes in: queries, keys and values, which its graphs hand on in float32, are multiplied in
bfloat16 if that is it (docs/decisions/0027). One token is not: its products are no matrices.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.compiler import is_compiling

from sleepc.backends.triton import launch, library
from sleepc.backends.triton.choices import WIDEST, Problem, chunk_of
from sleepc.backends.triton.launch import NAMES, WrittenTokens, wants_gradients
from sleepc.memory.registry import find
from sleepc.ops import functional

FAMILY = ("linear", "gated", "delta", "gated_delta")
"""The rules that the kernels know."""


def has_kernel(x: Tensor, state: Sequence[Tensor], rule: str) -> bool:
    """Is there a kernel for keys or queries x [B, .., T, dk], and such a state?"""
    fits = rule in FAMILY and x.dtype in NAMES and x.numel() > 0
    return fits and state[0].dtype == torch.float32 and max(state[0].shape[2:]) <= WIDEST


def narrowed(x: Tensor, low: torch.dtype | None) -> Tensor:
    """What products of matrices take of x [B, .., T, d] in a program that computes in `low`. Not float16: what a memory
    without decay or correction adds up, and what is read of it, may be larger than 65,504.
    """
    fits = low == torch.bfloat16 and x.dtype == torch.float32 and x.shape[2] != 1
    return x.to(torch.bfloat16) if fits else x


def _prepared(k: Tensor, v: Tensor, g: Tensor, beta: Tensor, rule: str, chunk: int) -> tuple[WrittenTokens, Problem]:
    """What is written as the kernels take it, and what these are compiled for."""
    how = find(rule)
    t = WrittenTokens(k.contiguous(), v.to(k.dtype).contiguous(), g.contiguous(), beta.contiguous())
    return t, launch.problem(t, chunk=chunk_of(v.shape[2], chunk), corrects=how.corrects, decays=how.decays)


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
    low: torch.dtype | None = None,
) -> list[Tensor]:
    """See `sleepc.ops.functional.delta_rule`. The state is float32; bfloat16 and float16 are multiplied as they are.
    `chunk` is rounded to what there is a kernel for.
    """
    trained = wants_gradients(q, k, v, g, beta, *state)
    if not has_kernel(k, state, rule):
        return functional.delta_rule(q, k, v, g, beta, state, gates, rule=rule, scale=scale, chunk=chunk)
    single = v.shape[2] == 1 and not trained
    asked, k, v = (narrowed(x, low) for x in (q, k, v))
    t, it = _prepared(k, v, g, beta, rule, chunk)
    asked, held = asked.to(k.dtype).contiguous(), state[0].contiguous()
    rule_of = (it.corrects, bool(it.decay))
    if single and is_compiling():
        out, end = library.step(asked, t.k, t.v, t.g, t.beta, held, scale, *rule_of)
    elif trained or is_compiling():
        out, end = library.delta_rule(asked, t.k, t.v, t.g, t.beta, held, scale, *rule_of, it.chunk)
    elif single:
        out, end = launch.step(asked, t, held, scale, it)
    else:
        done = launch.advance(t, held, it)
        out, end = launch.answer(asked, t, done, scale, it), done.end
    return [out.to(q.dtype), end]


def delta_rule_read(
    q: Tensor, state: Sequence[Tensor], *, rule: str, scale: float, low: torch.dtype | None = None
) -> Tensor:
    """See `sleepc.ops.functional.delta_rule_read`."""
    if wants_gradients(q, *state) or not has_kernel(q, state, rule):
        return functional.delta_rule_read(q, state, rule=rule, scale=scale)
    asked = narrowed(q, low).contiguous()
    held, chunk = state[0].contiguous(), chunk_of(q.shape[2], 64)
    if is_compiling():
        read: Tensor = library.recall(asked, held, scale, chunk)
    else:
        read = launch.recall(asked, held, scale, launch.reading(asked, held, chunk))
    return read.to(q.dtype)


def replay(
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    state: Sequence[Tensor],
    gates: Sequence[Tensor] | None = None,
    *,
    rule: str,
    passes: int,
    written: bool,
    chunk: int = 64,
    low: torch.dtype | None = None,
) -> list[Tensor]:
    """See `sleepc.ops.functional.replay`: here every pass is made, from the state on the chip."""
    trained = wants_gradients(k, v, g, beta, *state)
    if passes < (2 if written and trained else 1) or not has_kernel(k, state, rule):
        given = (k, v, g, beta, state, gates)
        return functional.replay(*given, rule=rule, passes=passes, written=written, chunk=chunk)
    t, it = _prepared(narrowed(k, low), narrowed(v, low), g, beta, rule, chunk)
    held, counts = state[0].contiguous(), (0 if written else 1, passes - 1)
    if not trained and not is_compiling():
        return [launch.replay(t, held, *counts, it)]
    return [library.replay(t.k, t.v, t.g, t.beta, held, *counts, it.corrects, bool(it.decay), it.chunk)]
