"""The delta rule over chunks of C tokens (Yang, Kautz, Hatamizadeh, arXiv 2412.06464, section 3.3):

    G = cumsum(g),  D_ij = exp(G_i - G_j) for j <= i
    solve     X = (I + strict_lower(beta K K^T D))^-1
    prepare   U = X beta V,  W = X beta exp(G) K
    carry     V' = U - W S,  S' = exp(G_C) S + (exp(G_C - G) K)^T V'
    read      O = scale (exp(G) Q S + (Q K^T D) V')

`memory/chunk.py` is the same in PyTorch, `ops/naive.py` its meaning. Rules that do not correct have V' = beta V, and
nothing to solve. With decay per channel K K^T D and Q K^T D are made before, by `channels.scores`, and `g` is `total`
of `channels.sums`. One program has one chunk (solve,
prepare, read) or one memory (carry), and some columns of the values.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sleepc.backends.triton.kernels.inverse import invert
from sleepc.backends.triton.kernels.tiles import decay_between, faded, load_gates, load_rows, load_total, store_rows


@triton.jit
def products(
    rows, keys, total, made, head, first, tokens,
    C: tl.constexpr, DECAY: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """rows [C, BK] times keys, each with the decay between its tokens, zero above the diagonal [C, C]: `made` has them
    if decay is per channel.
    """
    row = tl.arange(0, C)
    if DECAY == "channel":
        seen = load_rows(made + head * tokens * C, first, tokens, 0, C, C, C)
    else:
        seen = tl.dot(rows, tl.trans(keys), input_precision=EXACT)
    if DECAY == "head":
        return seen * decay_between(total, C)
    else:
        return tl.where(row[:, None] >= row[None, :], seen, 0.0)


@triton.jit
def solve(
    k, g, beta, scores, x, tokens, shared_keys,
    DK: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, DECAY: tl.constexpr, DOT: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """k [B, heads / shared_keys, T, DK], g and beta [B, heads, T] -> X [B, heads, T, C] in `x`."""
    chunks = tl.cdiv(tokens, C)
    first = (tl.program_id(0) % chunks) * C
    memory = (tl.program_id(0) // chunks).to(tl.int64)
    strength = load_gates(beta + memory * tokens, first, tokens, C)
    keys, total = strength, strength
    if DECAY != "channel":
        keys = load_rows(k + memory // shared_keys * tokens * DK, first, tokens, 0, C, DK, BK).to(DOT)
    if DECAY == "head":
        total = load_total(g, memory, first, tokens, C, DK, BK, DECAY)
    a = products(keys, keys, total, scores, memory, first, tokens, C, DECAY, EXACT) * strength[:, None]
    row = tl.arange(0, C)
    a = invert(tl.where(row[:, None] > row[None, :], a, 0.0), C)
    store_rows(x + memory * tokens * C, a, first, tokens, 0, C, C, C)


@triton.jit
def prepare(
    k, v, g, beta, x, w, u, tokens, shared_keys,
    DK: tl.constexpr, DV: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    DECAY: tl.constexpr, DOT: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """v [B, heads, T, DV] and what `solve` has -> W [B, heads, T, DK] in `w`, and U, like v, in `u`."""
    chunks = tl.cdiv(tokens, C)
    first = (tl.program_id(0) % chunks) * C
    memory = (tl.program_id(0) // chunks).to(tl.int64)
    solved = load_rows(x + memory * tokens * C, first, tokens, 0, C, C, C).to(DOT)
    strength = load_gates(beta + memory * tokens, first, tokens, C)[:, None]
    keys = load_rows(k + memory // shared_keys * tokens * DK, first, tokens, 0, C, DK, BK)
    if DECAY != "":
        keys = faded(keys, load_total(g, memory, first, tokens, C, DK, BK, DECAY), DECAY)
    keys = tl.dot(solved, (keys * strength).to(DOT), input_precision=EXACT)
    store_rows(w + memory * tokens * DK, keys, first, tokens, 0, C, DK, BK)
    for at in range(0, DV, BV):
        values = load_rows(v + memory * tokens * DV, first, tokens, at, C, DV, BV)
        values = tl.dot(solved, (values * strength).to(DOT), input_precision=EXACT)
        store_rows(u + memory * tokens * DV, values, first, tokens, at, C, DV, BV)


@triton.jit
def written(
    state, w, u, beta, memory, first, tokens, at,
    DK: tl.constexpr, DV: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    CORRECTS: tl.constexpr, DOT: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """V' of a chunk [C, BV]: U - W S, or of a rule that does not correct beta V, which `u` then holds."""
    values = load_rows(u + memory * tokens * DV, first, tokens, at, C, DV, BV).to(tl.float32)
    if CORRECTS:
        keys = load_rows(w + memory * tokens * DK, first, tokens, 0, C, DK, BK).to(DOT)
        return values - tl.dot(keys, state.to(DOT), input_precision=EXACT)
    return values * load_gates(beta + memory * tokens, first, tokens, C)[:, None]


@triton.jit
def carried(
    state, new, k, g, memory, first, tokens, shared_keys,
    DK: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, DECAY: tl.constexpr, DOT: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """The state [BK, BV] after a chunk that writes `new` [C, BV]."""
    keys = load_rows(k + memory // shared_keys * tokens * DK, first, tokens, 0, C, DK, BK)
    if DECAY != "":
        total = load_total(g, memory, first, tokens, C, DK, BK, DECAY)
        last = tl.min(total, axis=0, keep_dims=True)  # sums only fall; past the end they are 0
        state = faded(state, tl.trans(last) if DECAY == "channel" else last, DECAY)
        keys = faded(keys, last - total, DECAY)
    return state + tl.dot(tl.trans(keys.to(DOT)), new.to(DOT), input_precision=EXACT)


@triton.jit
def carry(
    k, w, u, g, beta, state, starts, writes, end, tokens, shared_keys,
    DK: tl.constexpr, DV: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    CORRECTS: tl.constexpr, DECAY: tl.constexpr, DOT: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """One memory, chunk after chunk: state [B, heads, DK, DV] -> `end`, with what the chunks began from in `starts`
    [B, heads, chunks, DK, DV] and V' in `writes` [B, heads, T, DV].
    """
    columns = tl.cdiv(DV, BV)
    at = (tl.program_id(0) % columns) * BV
    memory = (tl.program_id(0) // columns).to(tl.int64)
    starts += memory * tl.cdiv(tokens, C) * DK * DV
    held = load_rows(state + memory * DK * DV, 0, DK, at, BK, DV, BV).to(tl.float32)
    for first in range(0, tokens, C):
        store_rows(starts, held, 0, DK, at, BK, DV, BV)
        starts += DK * DV
        new = written(held, w, u, beta, memory, first, tokens, at, DK, DV, C, BK, BV, CORRECTS, DOT, EXACT)
        store_rows(writes + memory * tokens * DV, new, first, tokens, at, C, DV, BV)
        held = carried(held, new, k, g, memory, first, tokens, shared_keys, DK, C, BK, DECAY, DOT, EXACT)
    store_rows(end + memory * DK * DV, held, 0, DK, at, BK, DV, BV)


@triton.jit
def read(
    q, k, writes, g, scores, starts, out, tokens, scale, shared_queries, shared_keys, shared_memories,
    DK: tl.constexpr, DV: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    DECAY: tl.constexpr, DOT: tl.constexpr, EXACT: tl.constexpr,
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
    keys = load_rows(k + memory // shared_keys * tokens * DK, first, tokens, 0, C, DK, BK).to(DOT)
    total = tl.zeros([C], tl.float32)
    if DECAY != "":
        total = load_total(g, memory, first, tokens, C, DK, BK, DECAY)
    seen = products(queries, keys, total, scores, head, first, tokens, C, DECAY, EXACT)
    new = load_rows(writes + memory * tokens * DV, first, tokens, at, C, DV, BV).to(DOT)
    answer = tl.dot(seen.to(DOT), new, input_precision=EXACT)
    if DECAY != "":
        queries = faded(queries, total, DECAY).to(DOT)
    held = load_rows(starts + (memory * chunks + chunk) * DK * DV, 0, DK, at, BK, DV, BV).to(DOT)
    answer += tl.dot(queries, held, input_precision=EXACT)
    store_rows(out + head * tokens * DV, answer * scale, first, tokens, at, C, DV, BV)
