"""Tiles: rows of a matrix in and out, and sums of decay."""

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
def last_of(total, ROWS: tl.constexpr):
    """The sum of a whole chunk: total [ROWS] -> a number."""
    return tl.sum(tl.where(tl.arange(0, ROWS) == ROWS - 1, total, 0.0), axis=0)
