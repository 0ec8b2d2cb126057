"""The delta rule over chunks of C tokens (Yang, Kautz, Hatamizadeh, arXiv 2412.06464, section 3.3), one decay a head:

    G = cumsum(g),  D_ij = exp(G_i - G_j) for j <= i
    prepare   X = (I + strict_lower(beta K K^T D))^-1,  U = X beta V,  W = X beta exp(G) K
    carry     V' = U - W S,  S' = exp(G_C) S + (exp(G_C - G) K)^T V'
    read      O = scale (exp(G) Q S + (Q K^T D) V')

`memory/chunk.py` is the same in PyTorch, `ops/naive.py` its meaning. Rules that do not correct have V' = beta V, and
nothing to prepare. One program has one chunk (prepare, read) or one memory (carry), and some columns of the values.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sleepc.backends.triton.kernels.inverse import invert
from sleepc.backends.triton.kernels.tiles import decay_between, last_of, load_gates, load_rows, store_rows


@triton.jit
def prepare(
    k, v, g, beta, w, u, tokens, shared_keys,
    DK: tl.constexpr, DV: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    DECAYS: tl.constexpr, DOT: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """k [B, heads / shared_keys, T, DK], v [B, heads, T, DV], g and beta [B, heads, T] -> W [B, heads, T, DK] in `w`,
    and U, like v, in `u`.
    """
    chunks = tl.cdiv(tokens, C)
    first = (tl.program_id(0) % chunks) * C
    memory = (tl.program_id(0) // chunks).to(tl.int64)
    keys = load_rows(k + memory // shared_keys * tokens * DK, first, tokens, 0, C, DK, BK).to(DOT)
    strength = load_gates(beta + memory * tokens, first, tokens, C)
    a = tl.dot(keys, tl.trans(keys), input_precision=EXACT) * strength[:, None]
    by_key = strength
    if DECAYS:
        total = tl.cumsum(load_gates(g + memory * tokens, first, tokens, C), axis=0)
        a *= decay_between(total, C)
        by_key = strength * tl.exp(total)
    row = tl.arange(0, C)
    x = invert(tl.where(row[:, None] > row[None, :], a, 0.0), C)
    keys = tl.dot((x * by_key[None, :]).to(DOT), keys, input_precision=EXACT)
    store_rows(w + memory * tokens * DK, keys, first, tokens, 0, C, DK, BK)
    x = (x * strength[None, :]).to(DOT)
    for at in range(0, DV, BV):
        values = load_rows(v + memory * tokens * DV, first, tokens, at, C, DV, BV).to(DOT)
        values = tl.dot(x, values, input_precision=EXACT)
        store_rows(u + memory * tokens * DV, values, first, tokens, at, C, DV, BV)


@triton.jit
def written(
    state, w, u, beta, first, tokens, at,
    DK: tl.constexpr, DV: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    CORRECTS: tl.constexpr, DOT: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """V' of a chunk [C, BV]: U - W S, or of a rule that does not correct beta V, which `u` then holds."""
    values = load_rows(u, first, tokens, at, C, DV, BV).to(tl.float32)
    if CORRECTS:
        keys = load_rows(w, first, tokens, 0, C, DK, BK).to(DOT)
        return values - tl.dot(keys, state.to(DOT), input_precision=EXACT)
    return values * load_gates(beta, first, tokens, C)[:, None]


@triton.jit
def carried(
    state, new, k, g, first, tokens,
    DK: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, DECAYS: tl.constexpr, DOT: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """The state [BK, BV] after a chunk that writes `new` [C, BV]."""
    keys = load_rows(k, first, tokens, 0, C, DK, BK)
    if DECAYS:
        total = tl.cumsum(load_gates(g, first, tokens, C), axis=0)
        last = last_of(total, C)
        state *= tl.exp(last)
        new *= tl.exp(last - total)[:, None]
    return state + tl.dot(tl.trans(keys.to(DOT)), new.to(DOT), input_precision=EXACT)


@triton.jit
def carry(
    k, w, u, g, beta, state, starts, writes, end, tokens, shared_keys,
    DK: tl.constexpr, DV: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    CORRECTS: tl.constexpr, DECAYS: tl.constexpr, DOT: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """One memory, chunk after chunk: state [B, heads, DK, DV] -> `end`, with what the chunks began from in `starts`
    [B, heads, chunks, DK, DV] and V' in `writes` [B, heads, T, DV].
    """
    columns = tl.cdiv(DV, BV)
    at = (tl.program_id(0) % columns) * BV
    memory = (tl.program_id(0) // columns).to(tl.int64)
    k += memory // shared_keys * tokens * DK
    w, u, writes = w + memory * tokens * DK, u + memory * tokens * DV, writes + memory * tokens * DV
    g, beta = g + memory * tokens, beta + memory * tokens
    starts += memory * tl.cdiv(tokens, C) * DK * DV
    held = load_rows(state + memory * DK * DV, 0, DK, at, BK, DV, BV).to(tl.float32)
    for first in range(0, tokens, C):
        store_rows(starts, held, 0, DK, at, BK, DV, BV)
        starts += DK * DV
        new = written(held, w, u, beta, first, tokens, at, DK, DV, C, BK, BV, CORRECTS, DOT, EXACT)
        store_rows(writes, new, first, tokens, at, C, DV, BV)
        held = carried(held, new, k, g, first, tokens, DK, C, BK, DECAYS, DOT, EXACT)
    store_rows(end + memory * DK * DV, held, 0, DK, at, BK, DV, BV)


@triton.jit
def read(
    q, k, writes, g, starts, out, tokens, scale, shared_queries, shared_keys, shared_memories,
    DK: tl.constexpr, DV: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    DECAYS: tl.constexpr, DOT: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """What the queries read: q -> out [B, heads, T, DV], as many heads as there are queries or memories, whichever is
    more; so many of them in a row share a query, a memory and (memories in a row) a key.
    """
    columns, chunks = tl.cdiv(DV, BV), tl.cdiv(tokens, C)
    at = (tl.program_id(0) % columns) * BV
    chunk = (tl.program_id(0) // columns) % chunks
    first = chunk * C
    head = (tl.program_id(0) // columns // chunks).to(tl.int64)
    memory = head // shared_memories
    queries = load_rows(q + head // shared_queries * tokens * DK, first, tokens, 0, C, DK, BK).to(DOT)
    held = load_rows(starts + (memory * chunks + chunk) * DK * DV, 0, DK, at, BK, DV, BV).to(DOT)
    answer = tl.dot(queries, held, input_precision=EXACT)
    keys = load_rows(k + memory // shared_keys * tokens * DK, first, tokens, 0, C, DK, BK).to(DOT)
    seen = tl.dot(queries, tl.trans(keys), input_precision=EXACT)
    if DECAYS:
        total = tl.cumsum(load_gates(g + memory * tokens, first, tokens, C), axis=0)
        answer *= tl.exp(total)[:, None]
        seen *= decay_between(total, C)
    else:
        row = tl.arange(0, C)
        seen = tl.where(row[:, None] >= row[None, :], seen, 0.0)
    new = load_rows(writes + memory * tokens * DV, first, tokens, at, C, DV, BV).to(DOT)
    answer += tl.dot(seen.to(DOT), new, input_precision=EXACT)
    store_rows(out + head * tokens * DV, answer * scale, first, tokens, at, C, DV, BV)
