"""The chunked kernels started on tensors: room for results, grids, and which kernel follows which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sleepc.backends.triton.choices import Problem, choose
from sleepc.backends.triton.kernels import chunked

INTERPRETED: bool = triton.knobs.runtime.interpret
"""Do kernels run in Triton's interpreter, on the CPU? It multiplies bfloat16 wrongly, without an error: there all is
multiplied, and stored, in float32."""
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
TYPES = {"fp32": tl.float32, "bf16": tl.bfloat16, "fp16": tl.float16}


@dataclass(frozen=True)
class WrittenTokens:
    """What is written: k [B, Hk, T, dk], v [B, H, T, dv], g and beta [B, H, T]; H is a multiple of Hk."""

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


def working(x: Tensor) -> torch.dtype:
    """The type in which x is multiplied, and results are stored."""
    return torch.float32 if INTERPRETED and x.dtype == torch.bfloat16 else x.dtype


def problem(t: WrittenTokens, *, chunk: int, corrects: bool, decays: bool) -> Problem:
    """What the kernels for these tokens are compiled for."""
    exact = "ieee" if torch.version.hip or INTERPRETED else "tf32x3"
    return Problem(t.k.shape[3], t.v.shape[3], chunk, NAMES[working(t.k)], corrects, decays, exact)


def start(kernel: Any, it: Problem, blocks: int, *arguments: Any) -> None:
    """Start a kernel on as many programs as `blocks`, times the column blocks of the values where it has these."""
    how = choose(kernel.fn.__name__, it)
    constants = {**how.constants, "DOT": TYPES[it.dot]}
    columns = 1 if kernel is chunked.prepare else triton.cdiv(it.dv, constants["BV"])
    kernel[(blocks * columns,)](
        *arguments, **constants, num_warps=how.warps, num_stages=how.stages, enable_fp_fusion=True
    )


def advance(t: WrittenTokens, state: Tensor, it: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """All chunks of the tokens: state [B, H, dk, dv] -> the states that they begin from [B, H, chunks, dk, dv], what
    they write [B, H, T, dv], and the state after them.
    """
    count = t.v.shape[2]
    chunks = triton.cdiv(count, it.chunk)
    like = torch.empty(0, dtype=working(t.k), device=t.k.device)
    starts = like.new_empty(*t.v.shape[:2], chunks, it.dk, it.dv)
    writes, end = like.new_empty(t.v.shape), torch.empty_like(state)
    w, u = t.k, t.v
    if it.corrects:
        w, u = like.new_empty(*t.v.shape[:3], it.dk), like.new_empty(t.v.shape)
        start(chunked.prepare, it, t.memories * chunks, t.k, t.v, t.g, t.beta, w, u, count, t.shared_keys)
    arguments = (t.k, w, u, t.g, t.beta, state, starts, writes, end, count, t.shared_keys)
    start(chunked.carry, it, t.memories, *arguments)
    return starts, writes, end


def answer(q: Tensor, t: WrittenTokens, starts: Tensor, writes: Tensor, scale: float, it: Problem) -> Tensor:
    """What queries [B, Hq, T, dk] read on the way -> [B, max(Hq, H), T, dv]; one of Hq and H is a multiple of the
    other.
    """
    rows, memories, count = t.v.shape[:3]
    heads = max(q.shape[1], memories)
    out = torch.empty(rows, heads, count, it.dv, dtype=working(q), device=q.device)
    shared = (heads // q.shape[1], t.shared_keys, heads // memories)
    blocks = rows * heads * triton.cdiv(count, it.chunk)
    start(chunked.read, it, blocks, q, t.k, writes, t.g, starts, out, count, scale, *shared)
    return out.to(q.dtype)
