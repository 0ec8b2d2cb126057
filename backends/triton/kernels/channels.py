"""Decay per key channel: what it needs before `chunked.py`, and after `gradients.py` (secondary chunking: Gated Linear
Attention, arXiv 2312.06635, section 4.3). Nothing above 0 is ever raised, so nothing overflows.
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


@triton.jit
def of_others(
    rows, k, total, d_made, own, first, part, tokens,
    DK: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, DOT: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """What other tokens of the chunk give to 16, as rows that look back, and as keys of later ones [16, BK]. They are
    measured from a token between: the first of these, or the last.
    """
    parts, at = C // 16, first + part * 16
    origin = load_row(total, at, 0, DK, BK)[None, :]
    as_row = tl.zeros([16, BK], tl.float32)
    for j in range(0, part):
        keys = load_rows(k, first + j * 16, tokens, 0, 16, DK, BK).to(tl.float32)
        right = keys * tl.exp(origin - load_rows(total, first + j * 16, tokens, 0, 16, DK, BK))
        weights = load_rows(d_made, at, tokens, j * 16, 16, C, 16)
        as_row += tl.dot(weights.to(DOT), right.to(DOT), input_precision=EXACT)
    last = load_row(total, tl.minimum(at + 15, tokens - 1), 0, DK, BK)[None, :]
    as_key = tl.zeros([16, BK], tl.float32)
    for i in range(part + 1, tl.minimum(parts, tl.cdiv(tokens - first, 16))):
        others = load_rows(rows, first + i * 16, tokens, 0, 16, DK, BK).to(tl.float32)
        others *= tl.exp(tl.minimum(load_rows(total, first + i * 16, tokens, 0, 16, DK, BK) - last, 0.0))
        weights = load_rows(d_made, first + i * 16, tokens, part * 16, 16, C, 16)
        as_key += tl.dot(tl.trans(weights.to(DOT)), others.to(DOT), input_precision=EXACT)
    as_row *= tl.exp(tl.minimum(own - origin, 0.0))
    return as_row, as_key * tl.exp(tl.minimum(last - own, 0.0))


@triton.jit
def of_scores(
    rows, k, total, d_made, d_rows, d_k, d_total, tokens, shared_rows, shared_keys, shared_memories,
    DK: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, DOT: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Gradients of `scores`, a head for itself, with d_made [.., T, C] zero above the diagonal: d_rows [.., T, DK] gets
    them in addition, d_k [.., T, DK] is that of the keys, and d_total [.., T, DK] is rows d_rows - k d_k. One program
    has 16 tokens, as rows and as keys.
    """
    chunks, parts, token = tl.cdiv(tokens, C), C // 16, tl.arange(0, 16)
    part = tl.program_id(0) % parts
    first = (tl.program_id(0) // parts) % chunks * C
    head = (tl.program_id(0) // parts // chunks).to(tl.int64)
    rows += head // shared_rows * tokens * DK
    k += head // shared_memories // shared_keys * tokens * DK
    total += head // shared_memories * tokens * DK
    d_made += head * tokens * C
    here = head * tokens * DK
    at = first + part * 16
    if at < tokens:
        own, count = load_rows(total, at, tokens, 0, 16, DK, BK), tl.minimum(16, tokens - at)
        as_row, as_key = of_others(rows, k, total, d_made, own, first, part, tokens, DK, C, BK, DOT, EXACT)
        for j in range(0, count):
            there = load_row(total, at + j, 0, DK, BK)[None, :]
            weights = tl.load(d_made + (at + token) * C + part * 16 + j, mask=token < count, other=0.0)
            right = load_row(k, at + j, 0, DK, BK)[None, :] * tl.exp(tl.minimum(own - there, 0.0))
            as_row += weights[:, None] * right
            weights = load_row(d_made, at + j, part * 16, C, 16)
            left = load_row(rows, at + j, 0, DK, BK)[None, :] * tl.exp(tl.minimum(there - own, 0.0))
            as_key += weights[:, None] * left
        as_row += load_rows(d_rows + here, at, tokens, 0, 16, DK, BK).to(tl.float32)
        by_row = load_rows(rows, at, tokens, 0, 16, DK, BK).to(tl.float32) * as_row
        by_key = load_rows(k, at, tokens, 0, 16, DK, BK).to(tl.float32) * as_key
        store_rows(d_rows + here, as_row, at, tokens, 0, 16, DK, BK)
        store_rows(d_k + here, as_key, at, tokens, 0, 16, DK, BK)
        store_rows(d_total + here, by_row - by_key, at, tokens, 0, 16, DK, BK)


@triton.jit
def of_sums(d_total, d_g, tokens, DK: tl.constexpr, C: tl.constexpr, BK: tl.constexpr):
    """Gradients of `sums`: d_total [.., T, DK], summed from a token to the end of its chunk, is added to d_g."""
    chunks = tl.cdiv(tokens, C)
    first = (tl.program_id(0) % chunks) * C
    at = (tl.program_id(0) // chunks).to(tl.int64) * tokens * DK
    rows = tl.cumsum(load_rows(d_total + at, first, tokens, 0, C, DK, BK), axis=0, reverse=True)
    store_rows(d_g + at, rows + load_rows(d_g + at, first, tokens, 0, C, DK, BK), first, tokens, 0, C, DK, BK)
