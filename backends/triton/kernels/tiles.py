"""Tiles: rows of a matrix in and out, and decay."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_rows(base, first, count, at, ROWS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr):
    """[ROWS, WIDTH] of a [count, D] matrix from row `first` and column `at` on; zeros outside it."""
    row, column = first + tl.arange(0, ROWS), at + tl.arange(0, WIDTH)
    inside = (row < count)[:, None] & (column < D)[None, :]
    return tl.load(base + row[:, None] * D + column[None, :], mask=inside, other=0.0)


@triton.jit
def store_rows(base, value, first, count, at, ROWS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr):
    """The opposite of `load_rows`."""
    row, column = first + tl.arange(0, ROWS), at + tl.arange(0, WIDTH)
    inside = (row < count)[:, None] & (column < D)[None, :]
    tl.store(base + row[:, None] * D + column[None, :], value, mask=inside)


@triton.jit
def load_row(base, row, at, D: tl.constexpr, WIDTH: tl.constexpr):
    """[WIDTH] of row `row` of a matrix of D columns, in float32, from column `at` on; zeros past the end."""
    column = at + tl.arange(0, WIDTH)
    return tl.load(base + row * D + column, mask=column < D, other=0.0).to(tl.float32)


@triton.jit
def load_gates(base, first, count, ROWS: tl.constexpr):
    """[ROWS] numbers in float32, one a token; zeros past the end."""
    row = first + tl.arange(0, ROWS)
    return tl.load(base + row, mask=row < count, other=0.0).to(tl.float32)


@triton.jit
def decay_between(total, ROWS: tl.constexpr):
    """exp(G_i - G_j) for j <= i, else 0: total [ROWS] -> [ROWS, ROWS]. What is raised is never above 0."""
    row = tl.arange(0, ROWS)
    apart = tl.where(row[:, None] >= row[None, :], total[:, None] - total[None, :], float("-inf"))
    return tl.exp(apart)


@triton.jit
def load_total(g, head, first, count, ROWS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, DECAY: tl.constexpr):
    """Sums of decay from the chunk's first token on, of head number `head`: [ROWS] of `g` [heads, count], or [ROWS,
    WIDTH] of `g` [heads, count, D], which holds them already (`channels.sums`).
    """
    if DECAY == "channel":
        return load_rows(g + head * count * D, first, count, 0, ROWS, D, WIDTH).to(tl.float32)
    else:  # what is returned has another shape: only one of two may be seen
        return tl.cumsum(load_gates(g + head * count, first, count, ROWS), axis=0)


@triton.jit
def faded(rows, total, DECAY: tl.constexpr):
    """exp(total) times the rows, float32: rows [ROWS, WIDTH], total [ROWS] or [ROWS, WIDTH]."""
    if DECAY == "channel":
        return rows.to(tl.float32) * tl.exp(total)
    else:
        return rows.to(tl.float32) * tl.exp(total)[:, None]
