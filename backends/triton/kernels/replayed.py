"""Consolidation by replay: passes over a window, with the state held on the chip from the first to the last."""

from __future__ import annotations

import triton
import triton.language as tl

from sleepc.backends.triton.kernels.chunked import carried, written
from sleepc.backends.triton.kernels.tiles import load_rows, store_rows


@triton.jit
def once(
    held, k, w, u, g, beta, memory, at, tokens, shared_keys,
    DK: tl.constexpr, DV: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    CORRECTS: tl.constexpr, DECAY: tl.constexpr, DOT: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """The state [BK, BV] after one pass over the window."""
    for first in range(0, tokens, C):
        new = written(held, w, u, beta, memory, first, tokens, at, DK, DV, C, BK, BV, CORRECTS, DOT, EXACT)
        held = carried(held, new, k, g, memory, first, tokens, shared_keys, DK, C, BK, DECAY, DOT, EXACT)
    return held


@triton.jit
def replay(
    k, w, u, w_again, u_again, g, beta, state, end, tokens, firsts, passes, shared_keys,
    DK: tl.constexpr, DV: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    CORRECTS: tl.constexpr, DECAY: tl.constexpr, DOT: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """`firsts` passes (1, or 0 if it was made while awake) with decay, by `w` and `u` of `chunked.prepare`, then
    `passes` without, by `w_again` and `u_again`: state -> `end`. One program has one memory and some columns.
    """
    columns = tl.cdiv(DV, BV)
    at = (tl.program_id(0) % columns) * BV
    memory = (tl.program_id(0) // columns).to(tl.int64)
    held = load_rows(state + memory * DK * DV, 0, DK, at, BK, DV, BV).to(tl.float32)
    for _ in range(0, firsts):
        held = once(
            held, k, w, u, g, beta, memory, at, tokens, shared_keys, DK, DV, C, BK, BV, CORRECTS, DECAY, DOT, EXACT
        )
    for _ in range(0, passes):
        held = once(
            held, k, w_again, u_again, g, beta, memory, at, tokens, shared_keys,
            DK, DV, C, BK, BV, CORRECTS, "", DOT, EXACT,
        )  # fmt: skip
    store_rows(end + memory * DK * DV, held, 0, DK, at, BK, DV, BV)
