"""What stands around a memory, one launch each: keys of unit length, gates, the mix, the output norm.

`ops/functional/fused.py` is the same in PyTorch, `ops/naive.py` its meaning. Everywhere a program has C of `count`
heads of tokens, of any rows; in `gates` C of `count` tokens, and BV columns of the projections of all heads.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sleepc.backends.triton.kernels.tiles import load_row, load_rows, store_rows


@triton.jit
def softplus(x):
    """log(1 + e^x), as exact where it is small: log(1 + e) = 2 atanh(e / (2 + e)), whose series is cut after s^17 for
    s <= 1/3.
    """
    small = tl.exp(-tl.abs(x))
    s = small / (2.0 + small)
    square = s * s
    series = 1.0 / 15 + square / 17
    for n in tl.static_range(6, -1, -1):
        series = series * square + 1.0 / (2 * n + 1)
    return tl.maximum(x, 0.0) + 2.0 * s * series


@triton.jit
def place(first, tokens, heads, C: tl.constexpr):
    """Of C heads of tokens [B, heads, tokens], from number `first` on: the numbers of their tokens [B, tokens], and
    what head each is.
    """
    number = first + tl.arange(0, C)
    return number // (heads * tokens) * tokens + number % tokens, number // tokens % heads


@triton.jit
def masked_l2norm(values, real, normed, count, tokens, heads, DK: tl.constexpr, C: tl.constexpr, BK: tl.constexpr):
    """`features.l2norm` of values [B, heads, tokens, DK], and 0 where real [B, tokens] is false -> normed."""
    first = tl.program_id(0).to(tl.int64) * C
    token, _ = place(first, tokens, heads, C)
    rows = load_rows(values, first, count, 0, C, DK, BK).to(tl.float32)
    length = tl.sum(rows * rows, axis=1) + 1e-6
    is_real = tl.load(real + token, mask=first + tl.arange(0, C) < count, other=0).to(tl.float32)
    store_rows(normed, rows * (tl.rsqrt(length) * is_real)[:, None], first, count, 0, C, DK, BK)


@triton.jit
def gates(
    real, strengths, decays, rate, beta, g, count, tokens, heads,
    DK: tl.constexpr, DV: tl.constexpr, C: tl.constexpr, BV: tl.constexpr, DECAY: tl.constexpr,
):  # fmt: skip
    """sigmoid(strengths) [B, tokens, heads] -> beta [B, heads, tokens], and -exp(rate) softplus(decays) of DV = heads
    DK columns -> g [B, heads, tokens, DK]; both 0 where real [B, tokens] is false. Without decay DV is heads, and
    neither decays nor rate nor g is touched.
    """
    columns = tl.cdiv(DV, BV)
    column = (tl.program_id(0) % columns) * BV + tl.arange(0, BV)
    at = (tl.program_id(0) // columns).to(tl.int64) * C + tl.arange(0, C)
    inside = (at < count)[:, None] & (column < DV)[None, :]
    is_real = tl.load(real + at, mask=at < count, other=0).to(tl.float32)
    row, token = at // tokens, at % tokens
    if DECAY != "":
        size = softplus(tl.load(decays + at[:, None] * DV + column[None, :], mask=inside, other=0.0).to(tl.float32))
        speed = tl.exp(tl.load(rate + column, mask=column < DV, other=0.0).to(tl.float32))
        to = ((row[:, None] * heads + (column // DK)[None, :]) * tokens + token[:, None]) * DK + (column % DK)[None, :]
        tl.store(g + to, -size * speed[None, :] * is_real[:, None], mask=inside)
    inside &= (column < heads)[None, :]
    asked = tl.load(strengths + at[:, None] * heads + column[None, :], mask=inside, other=0.0).to(tl.float32)
    to = (row[:, None] * heads + column[None, :]) * tokens + token[:, None]
    tl.store(beta + to, tl.sigmoid(asked) * is_real[:, None], mask=inside)


@triton.jit
def mixed(
    window, answer, share, live, made, count, tokens, heads,
    DV: tl.constexpr, C: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """window + m (answer - window), both [B, heads, tokens, DV], m being sigmoid(share) [B, tokens, heads], and 0 in
    rows that are not live [B] -> made.
    """
    columns = tl.cdiv(DV, BV)
    column = (tl.program_id(0) % columns) * BV
    first = (tl.program_id(0) // columns).to(tl.int64) * C
    token, head = place(first, tokens, heads, C)
    known = first + tl.arange(0, C) < count
    own = load_rows(window, first, count, column, C, DV, BV).to(tl.float32)
    read = load_rows(answer, first, count, column, C, DV, BV).to(tl.float32)
    is_live = tl.load(live + token // tokens, mask=known, other=0).to(tl.float32)
    m = tl.sigmoid(tl.load(share + token * heads + head, mask=known, other=0.0).to(tl.float32)) * is_live
    store_rows(made, own + m[:, None] * (read - own), first, count, column, C, DV, BV)


@triton.jit
def gated_norm(
    values, weight, opening, normed, count, tokens, heads, epsilon,
    DK: tl.constexpr, C: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The RMS norm of values [B, heads, tokens, DK] with weight [DK], times silu(opening) [B, tokens, heads DK]
    -> normed, which lies as opening does.
    """
    first = tl.program_id(0).to(tl.int64) * C
    token, head = place(first, tokens, heads, C)
    rows = load_rows(values, first, count, 0, C, DK, BK).to(tl.float32)
    root = tl.rsqrt(tl.sum(rows * rows, axis=1) / DK + epsilon)
    column = tl.arange(0, BK)
    inside = (first + tl.arange(0, C) < count)[:, None] & (column < DK)[None, :]
    at = (token * heads + head)[:, None] * DK + column[None, :]
    asked = tl.load(opening + at, mask=inside, other=0.0).to(tl.float32)
    made = rows * root[:, None] * load_row(weight, 0, 0, DK, BK)[None, :]
    tl.store(normed + at, made * asked * tl.sigmoid(asked), mask=inside)
