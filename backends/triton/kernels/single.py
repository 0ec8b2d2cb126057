"""One token: it updates the memory and reads it; and queries that read a memory as it is."""

from __future__ import annotations

import triton
import triton.language as tl

from sleepc.backends.triton.kernels.tiles import load_row, load_rows, store_rows


@triton.jit
def step(
    q, k, v, g, beta, state, end, out, scale, shared_queries, shared_keys, shared_memories,
    DK: tl.constexpr, DV: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    CORRECTS: tl.constexpr, DECAY: tl.constexpr,
):  # fmt: skip
    """S' = exp(g) S + k (x) beta (v - exp(g) S^T k), and o = scale S'^T q of the heads that share the memory: one token
    of `chunked.py` and `read`, with their shapes. `end` may be `state`. One program has one memory and some columns.
    """
    columns = tl.cdiv(DV, BV)
    at = (tl.program_id(0) % columns) * BV
    memory = (tl.program_id(0) // columns).to(tl.int64)
    held = load_rows(state + memory * DK * DV, 0, DK, at, BK, DV, BV).to(tl.float32)
    key = load_row(k, memory // shared_keys, 0, DK, BK)[:, None]
    value = load_row(v, memory, at, DV, BV)
    if DECAY == "channel":
        held *= tl.exp(load_row(g, memory, 0, DK, BK))[:, None]
    elif DECAY == "head":
        held *= tl.exp(tl.load(g + memory).to(tl.float32))
    if CORRECTS:
        value -= tl.sum(key * held, axis=0)
    held += key * (value * tl.load(beta + memory).to(tl.float32))[None, :]
    store_rows(end + memory * DK * DV, held, 0, DK, at, BK, DV, BV)
    column = at + tl.arange(0, BV)
    for head in range(memory * shared_memories, (memory + 1) * shared_memories):
        query = load_row(q, head // shared_queries, 0, DK, BK)[:, None]
        answer = tl.sum(query * held, axis=0) * scale
        tl.store(out + head * DV + column, answer, mask=column < DV)


@triton.jit
def recall(
    q, state, out, tokens, scale, shared_queries, shared_memories,
    DK: tl.constexpr, DV: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    DOT: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """scale Q S for any number of queries; shapes as in `chunked.read`. One program has C queries and some columns."""
    columns, chunks = tl.cdiv(DV, BV), tl.cdiv(tokens, C)
    at = (tl.program_id(0) % columns) * BV
    first = (tl.program_id(0) // columns) % chunks * C
    head = (tl.program_id(0) // columns // chunks).to(tl.int64)
    queries = load_rows(q + head // shared_queries * tokens * DK, first, tokens, 0, C, DK, BK).to(DOT)
    held = load_rows(state + head // shared_memories * DK * DV, 0, DK, at, BK, DV, BV).to(DOT)
    answer = tl.dot(queries, held, input_precision=EXACT) * scale
    store_rows(out + head * tokens * DV, answer, first, tokens, at, C, DV, BV)
