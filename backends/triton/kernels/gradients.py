"""Gradients of `chunked.py`. With dX for the gradient of X, d_out and d_end being given:

    spread       dV' = scale P^T dO  (P = Q K^T D), summed over the heads that share a memory
    carry_back   from the last chunk to the first: dV' += exp(G_C - G) K dS',
                 dS = exp(G_C) dS' + scale (exp(G) Q)^T dO - W^T dV'
    of_queries   dP = scale dO V'^T,  dQ = exp(G) scale dO S^T + (dP D) K,  and dK = (dP D)^T Q
    of_states    dK = exp(G_C - G) V' dS'^T
    unsolve      dR = X^T dV',  dV = beta dR
    of_rights    dA = -strict_lower(dR V'^T) D,  dK = beta dA K + (beta dA)^T K - beta exp(G) dR S^T

since V' = X R with R = beta (V - exp(G) K S). All dK are added. Of a pair exp(G_i - G_j) x_i y_j the gradients of G are
x_i dx_i and -y_j dy_j; those of g are their sums from a token to the end of its chunk. Rules that do not correct have
dR = dV'. With decay per channel these pairs are those of a channel: what is between rows and keys of one chunk (dP D)
is put down in `d_made`, for `channels.of_scores`, and G is in `g`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sleepc.backends.triton.kernels.chunked import products
from sleepc.backends.triton.kernels.tiles import decay_between, faded, load_gates, load_rows, load_total, store_rows


@triton.jit
def spread(
    q, k, g, scores, d_out, d_writes, tokens, scale, shared_queries, shared_keys, shared_memories,
    DK: tl.constexpr, DV: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    DECAY: tl.constexpr, DOT: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """d_out [B, heads, T, DV] -> the part of d_writes [B, memories, T, DV] that comes from reads of the same chunk."""
    columns, chunks = tl.cdiv(DV, BV), tl.cdiv(tokens, C)
    at = (tl.program_id(0) % columns) * BV
    first = (tl.program_id(0) // columns) % chunks * C
    memory = (tl.program_id(0) // columns // chunks).to(tl.int64)
    keys = load_rows(k + memory // shared_keys * tokens * DK, first, tokens, 0, C, DK, BK).to(DOT)
    total = tl.zeros([C], tl.float32)
    if DECAY != "":
        total = load_total(g, memory, first, tokens, C, DK, BK, DECAY)
    new = tl.zeros([C, BV], tl.float32)
    for head in range(memory * shared_memories, (memory + 1) * shared_memories):
        queries = load_rows(q + head // shared_queries * tokens * DK, first, tokens, 0, C, DK, BK).to(DOT)
        seen = products(queries, keys, total, scores, head, first, tokens, C, DECAY, EXACT) * scale
        answers = load_rows(d_out + head * tokens * DV, first, tokens, at, C, DV, BV).to(DOT)
        new += tl.dot(tl.trans(seen.to(DOT)), answers, input_precision=EXACT)
    store_rows(d_writes + memory * tokens * DV, new, first, tokens, at, C, DV, BV)


@triton.jit
def from_end(
    keys, held, g, memory, first, tokens,
    DK: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, DECAY: tl.constexpr, DOT: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """What dS' `held` gives to a chunk: its part of dV' [C, BV] and of dS [BK, BV], and exp(G), [C] or [C, BK]."""
    fade = tl.full([C], 1.0, tl.float32)
    if DECAY == "channel":
        total = load_total(g, memory, first, tokens, C, DK, BK, DECAY)
        last = tl.min(total, axis=0, keep_dims=True)
        new = tl.dot(faded(keys, last - total, DECAY).to(DOT), held.to(DOT), input_precision=EXACT)
        held *= tl.exp(tl.trans(last))
        fade = tl.exp(total)
    else:
        new = tl.dot(keys.to(DOT), held.to(DOT), input_precision=EXACT)
    if DECAY == "head":
        total = load_total(g, memory, first, tokens, C, DK, BK, DECAY)
        last = tl.min(total, axis=0)
        new *= tl.exp(last - total)[:, None]
        held *= tl.exp(last)
        fade = tl.exp(total)
    return new, held, fade


@triton.jit
def carry_back(
    q, k, w, g, d_out, d_writes, d_end, ends, d_state, tokens, scale, shared_queries, shared_keys, shared_memories,
    DK: tl.constexpr, DV: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    CORRECTS: tl.constexpr, DECAY: tl.constexpr, DOT: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """One memory, from the last chunk to the first: d_end [B, memories, DK, DV] -> d_state, with the gradients of what
    chunks end with in `ends` [B, memories, chunks, DK, DV]; d_writes becomes whole.
    """
    columns, chunks = tl.cdiv(DV, BV), tl.cdiv(tokens, C)
    at = (tl.program_id(0) % columns) * BV
    memory = (tl.program_id(0) // columns).to(tl.int64)
    held = load_rows(d_end + memory * DK * DV, 0, DK, at, BK, DV, BV).to(tl.float32)
    d_writes += memory * tokens * DV
    for back in range(0, chunks):
        first = (chunks - 1 - back) * C
        store_rows(ends + (memory * chunks + chunks - 1 - back) * DK * DV, held, 0, DK, at, BK, DV, BV)
        keys = load_rows(k + memory // shared_keys * tokens * DK, first, tokens, 0, C, DK, BK)
        new, held, fade = from_end(keys, held, g, memory, first, tokens, DK, C, BK, DECAY, DOT, EXACT)
        new += load_rows(d_writes, first, tokens, at, C, DV, BV).to(tl.float32)
        store_rows(d_writes, new, first, tokens, at, C, DV, BV)
        for head in range(memory * shared_memories, (memory + 1) * shared_memories):
            rows = load_rows(q + head // shared_queries * tokens * DK, first, tokens, 0, C, DK, BK)
            if DECAY == "channel":
                rows = (rows.to(tl.float32) * (fade * scale)).to(DOT)
            else:
                rows = (rows.to(tl.float32) * (fade * scale)[:, None]).to(DOT)
            answers = load_rows(d_out + head * tokens * DV, first, tokens, at, C, DV, BV).to(DOT)
            held += tl.dot(tl.trans(rows), answers, input_precision=EXACT)
        if CORRECTS:
            rows = load_rows(w + memory * tokens * DK, first, tokens, 0, C, DK, BK).to(DOT)
            held -= tl.dot(tl.trans(rows), new.to(DOT), input_precision=EXACT)
    store_rows(d_state + memory * DK * DV, held, 0, DK, at, BK, DV, BV)


@triton.jit
def store_decay(d_g, value, head, first, tokens, C: tl.constexpr):
    """[C] of d_g [.., T]."""
    row = first + tl.arange(0, C)
    tl.store(d_g + head * tokens + row, value, mask=row < tokens)


@triton.jit
def of_queries(
    q, k, g, starts, writes, d_out, d_q, d_k, d_g, d_made, tokens, scale, shared_queries, shared_keys, shared_memories,
    DK: tl.constexpr, DV: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    DECAY: tl.constexpr, DOT: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """What reading gives, a head for itself: d_q and d_k [B, heads, T, DK], d_g [B, heads, T]; with decay per channel
    the part of d_q that the state gives, and d_made [B, heads, T, C].
    """
    chunks = tl.cdiv(tokens, C)
    chunk = tl.program_id(0) % chunks
    first = chunk * C
    head = (tl.program_id(0) // chunks).to(tl.int64)
    memory = head // shared_memories
    inner, outer = tl.zeros([C, C], tl.float32), tl.zeros([C, BK], tl.float32)
    for at in range(0, DV, BV):
        answers = load_rows(d_out + head * tokens * DV, first, tokens, at, C, DV, BV).to(DOT)
        new = load_rows(writes + memory * tokens * DV, first, tokens, at, C, DV, BV).to(DOT)
        inner += tl.dot(answers, tl.trans(new), input_precision=EXACT)
        held = load_rows(starts + (memory * chunks + chunk) * DK * DV, 0, DK, at, BK, DV, BV).to(DOT)
        outer += tl.dot(answers, tl.trans(held), input_precision=EXACT)
    row = tl.arange(0, C)
    if DECAY == "channel":
        outer = faded(outer, load_total(g, memory, first, tokens, C, DK, BK, DECAY), DECAY)
        store_rows(d_q + head * tokens * DK, outer * scale, first, tokens, 0, C, DK, BK)
        inner = tl.where(row[:, None] >= row[None, :], inner, 0.0) * scale
        store_rows(d_made + head * tokens * C, inner, first, tokens, 0, C, C, C)
    else:
        if DECAY == "head":
            total = load_total(g, memory, first, tokens, C, DK, BK, DECAY)
            outer *= tl.exp(total)[:, None]
            inner *= decay_between(total, C)
        inner = (tl.where(row[:, None] >= row[None, :], inner, 0.0) * scale).to(DOT)
        keys = load_rows(k + memory // shared_keys * tokens * DK, first, tokens, 0, C, DK, BK).to(DOT)
        rows = outer * scale + tl.dot(inner, keys, input_precision=EXACT)
        store_rows(d_q + head * tokens * DK, rows, first, tokens, 0, C, DK, BK)
        queries = load_rows(q + head // shared_queries * tokens * DK, first, tokens, 0, C, DK, BK).to(DOT)
        by_total = tl.sum(queries.to(tl.float32) * rows, axis=1)
        rows = tl.dot(tl.trans(inner), queries, input_precision=EXACT)
        store_rows(d_k + head * tokens * DK, rows, first, tokens, 0, C, DK, BK)
        if DECAY == "head":
            by_total -= tl.sum(keys.to(tl.float32) * rows, axis=1)
            store_decay(d_g, tl.cumsum(by_total, axis=0, reverse=True), head, first, tokens, C)


@triton.jit
def of_states(
    k, g, starts, ends, writes, d_k, d_g, tokens, shared_keys,
    DK: tl.constexpr, DV: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    DECAY: tl.constexpr, DOT: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """What the state that a chunk ends with gives: d_k [B, memories, T, DK], d_g [B, memories, T], also [.., DK]."""
    chunks = tl.cdiv(tokens, C)
    first = (tl.program_id(0) % chunks) * C
    tile = tl.program_id(0).to(tl.int64) * DK * DV
    memory = (tl.program_id(0) // chunks).to(tl.int64)
    rows, by_last = tl.zeros([C, BK], tl.float32), tl.zeros([BK], tl.float32)
    for at in range(0, DV, BV):
        new = load_rows(writes + memory * tokens * DV, first, tokens, at, C, DV, BV).to(DOT)
        end = load_rows(ends + tile, 0, DK, at, BK, DV, BV).to(DOT)
        rows += tl.dot(new, tl.trans(end), input_precision=EXACT)
        held = load_rows(starts + tile, 0, DK, at, BK, DV, BV).to(tl.float32)
        by_last += tl.sum(held * end.to(tl.float32), axis=1)
    # G_C takes what every G_i gives: up to a token, that is the sum over those before it
    if DECAY == "channel":
        total = load_total(g, memory, first, tokens, C, DK, BK, DECAY)
        last = tl.min(total, axis=0)
        rows = faded(rows, last[None, :] - total, DECAY)
        store_rows(d_k + memory * tokens * DK, rows, first, tokens, 0, C, DK, BK)
        rows *= load_rows(k + memory // shared_keys * tokens * DK, first, tokens, 0, C, DK, BK)
        rows = tl.cumsum(rows, axis=0) - rows + (by_last * tl.exp(last))[None, :]
        store_rows(d_g + memory * tokens * DK, rows, first, tokens, 0, C, DK, BK)
    else:
        if DECAY == "head":
            total = load_total(g, memory, first, tokens, C, DK, BK, DECAY)
            last = tl.min(total, axis=0)
            rows *= tl.exp(last - total)[:, None]
            keys = load_rows(k + memory // shared_keys * tokens * DK, first, tokens, 0, C, DK, BK).to(tl.float32)
            by_total = tl.sum(keys * rows, axis=1)
            earlier = tl.cumsum(by_total, axis=0) - by_total
            store_decay(d_g, earlier + tl.sum(by_last, axis=0) * tl.exp(last), memory, first, tokens, C)
        store_rows(d_k + memory * tokens * DK, rows, first, tokens, 0, C, DK, BK)


@triton.jit
def unsolve(
    x, beta, d_writes, d_right, d_v, tokens,
    DV: tl.constexpr, C: tl.constexpr, BV: tl.constexpr,
    CORRECTS: tl.constexpr, DOT: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """dR in `d_right`, and d_v: both are like v."""
    columns, chunks = tl.cdiv(DV, BV), tl.cdiv(tokens, C)
    at = (tl.program_id(0) % columns) * BV
    first = (tl.program_id(0) // columns) % chunks * C
    memory = (tl.program_id(0) // columns // chunks).to(tl.int64)
    right = load_rows(d_writes + memory * tokens * DV, first, tokens, at, C, DV, BV).to(tl.float32)
    if CORRECTS:
        solved = load_rows(x + memory * tokens * C, first, tokens, 0, C, C, C).to(DOT)
        right = tl.dot(tl.trans(solved), right.to(DOT), input_precision=EXACT)
    store_rows(d_right + memory * tokens * DV, right, first, tokens, at, C, DV, BV)
    right *= load_gates(beta + memory * tokens, first, tokens, C)[:, None]
    store_rows(d_v + memory * tokens * DV, right, first, tokens, at, C, DV, BV)


@triton.jit
def by_rows(
    keys, between, lost, strength, g, d_k, d_g, memory, first, tokens,
    DK: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, DECAY: tl.constexpr, DOT: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """What A gives, decay per head or none, from dA [C, C] and dR S^T [C, BK]: d_k, d_g (stored) and d_beta [C]."""
    row = tl.arange(0, C)
    if DECAY == "head":
        total = load_total(g, memory, first, tokens, C, DK, BK, DECAY)
        lost *= tl.exp(total)[:, None]
        between *= decay_between(total, C)
    between = tl.where(row[:, None] > row[None, :], between, 0.0)
    as_row = tl.dot(between.to(DOT), keys, input_precision=EXACT) - lost
    by_row = tl.sum(keys.to(tl.float32) * as_row, axis=1)
    as_column = tl.dot(tl.trans((between * strength[:, None]).to(DOT)), keys, input_precision=EXACT)
    store_rows(d_k, as_row * strength[:, None] + as_column, first, tokens, 0, C, DK, BK)
    if DECAY == "head":
        by_total = by_row * strength - tl.sum(keys.to(tl.float32) * as_column, axis=1)
        store_decay(d_g, tl.cumsum(by_total, axis=0, reverse=True), memory, first, tokens, C)
    return by_row


@triton.jit
def of_rights(
    k, v, g, beta, scores, starts, writes, d_right, d_k, d_g, d_beta, d_made, tokens, shared_keys,
    DK: tl.constexpr, DV: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    CORRECTS: tl.constexpr, DECAY: tl.constexpr, DOT: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """What R and A give: d_k [B, memories, T, DK], d_g and d_beta [B, memories, T]; with decay per channel the part of
    d_k that the state gives, d_beta, and d_made [B, memories, T, C].
    """
    chunks = tl.cdiv(tokens, C)
    first = (tl.program_id(0) % chunks) * C
    tile = tl.program_id(0).to(tl.int64) * DK * DV
    memory = (tl.program_id(0) // chunks).to(tl.int64)
    between, lost = tl.zeros([C, C], tl.float32), tl.zeros([C, BK], tl.float32)
    by_beta, row = tl.zeros([C], tl.float32), tl.arange(0, C)
    for at in range(0, DV, BV):
        right = load_rows(d_right + memory * tokens * DV, first, tokens, at, C, DV, BV).to(DOT)
        values = load_rows(v + memory * tokens * DV, first, tokens, at, C, DV, BV).to(tl.float32)
        by_beta += tl.sum(right.to(tl.float32) * values, axis=1)
        if CORRECTS:
            new = load_rows(writes + memory * tokens * DV, first, tokens, at, C, DV, BV).to(DOT)
            between -= tl.dot(right, tl.trans(new), input_precision=EXACT)
            held = load_rows(starts + tile, 0, DK, at, BK, DV, BV).to(DOT)
            lost += tl.dot(right, tl.trans(held), input_precision=EXACT)
    if CORRECTS:
        strength = load_gates(beta + memory * tokens, first, tokens, C)
        keys = load_rows(k + memory // shared_keys * tokens * DK, first, tokens, 0, C, DK, BK).to(DOT)
        d_k += memory * tokens * DK
        if DECAY == "channel":
            below = row[:, None] > row[None, :]
            seen = tl.where(below, load_rows(scores + memory * tokens * C, first, tokens, 0, C, C, C), 0.0)
            lost = faded(lost, load_total(g, memory, first, tokens, C, DK, BK, DECAY), DECAY)
            between = tl.where(below, between, 0.0)
            by_beta += tl.sum(between * seen, axis=1)
            by_beta -= tl.sum(keys.to(tl.float32) * lost, axis=1)
            store_rows(d_k, -lost * strength[:, None], first, tokens, 0, C, DK, BK)
            store_rows(d_made + memory * tokens * C, between * strength[:, None], first, tokens, 0, C, C, C)
        else:
            by_beta += by_rows(
                keys, between, lost, strength, g, d_k, d_g, memory, first, tokens, DK, C, BK, DECAY, DOT, EXACT
            )
    tl.store(d_beta + memory * tokens + first + row, by_beta, mask=first + row < tokens)
