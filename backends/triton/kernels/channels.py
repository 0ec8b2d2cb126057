"""Decay per key channel: what it needs before `chunked.py` (secondary chunking: Gated Linear Attention, arXiv
2312.06635, section 4.3). Nothing above 0 is ever raised, so nothing overflows.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sleepc.backends.triton.kernels.tiles import load_row, load_rows, store_rows


@triton.jit
def sums(g, total, tokens, DK: tl.constexpr, C: tl.constexpr, BK: tl.constexpr):
    """g [.., T, DK] -> its sums from the first token of every chunk on, in `total`. One program has one chunk."""
    chunks = tl.cdiv(tokens, C)
    first = (tl.program_id(0) % chunks) * C
    at = (tl.program_id(0) // chunks).to(tl.int64) * tokens * DK
    rows = load_rows(g + at, first, tokens, 0, C, DK, BK).to(tl.float32)
    store_rows(total + at, tl.cumsum(rows, axis=0), first, tokens, 0, C, DK, BK)


@triton.jit
def scores(
    rows, k, total, made, tokens, shared_rows, shared_keys, shared_memories,
    DK: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, DOT: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """sum_c rows_ic k_jc exp(G_ic - G_jc) for j <= i of a chunk, float32 [.., T, C]; what is above is not written. One
    program has 16 rows. Earlier columns are measured from the first of these; for their own, every difference is taken.
    """
    chunks, parts = tl.cdiv(tokens, C), C // 16
    part = tl.program_id(0) % parts
    first = (tl.program_id(0) // parts) % chunks * C
    head = (tl.program_id(0) // parts // chunks).to(tl.int64)
    rows += head // shared_rows * tokens * DK
    k += head // shared_memories // shared_keys * tokens * DK
    total += head // shared_memories * tokens * DK
    made += head * tokens * C
    at = first + part * 16
    here = load_rows(rows, at, tokens, 0, 16, DK, BK).to(tl.float32)
    own = load_rows(total, at, tokens, 0, 16, DK, BK)
    if at < tokens:
        origin = load_row(total, at, 0, DK, BK)[None, :]
        left = (here * tl.exp(tl.minimum(own - origin, 0.0))).to(DOT)
        for j in range(0, part):
            keys = load_rows(k, first + j * 16, tokens, 0, 16, DK, BK).to(tl.float32)
            right = keys * tl.exp(origin - load_rows(total, first + j * 16, tokens, 0, 16, DK, BK))
            near = tl.dot(left, tl.trans(right.to(DOT)), input_precision=EXACT)
            store_rows(made, near, at, tokens, j * 16, 16, C, 16)
        near = tl.zeros([16, 16], tl.float32)
        column = tl.arange(0, 16)[None, :]
        for j in range(0, tl.minimum(16, tokens - at)):
            fade = tl.exp(tl.minimum(own - load_row(total, at + j, 0, DK, BK)[None, :], 0.0))
            score = tl.sum(here * fade * load_row(k, at + j, 0, DK, BK)[None, :], axis=1)
            near = tl.where(column == j, score[:, None], near)
        store_rows(made, near, at, tokens, part * 16, 16, C, 16)
