"""What stands between a projection and the memory: the L2 norm of a head, one token of the short convolution.

`ops/functional/features.py` is the same in PyTorch, `ops/naive.py` its meaning.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sleepc.backends.triton.kernels.tiles import load_rows, store_rows


@triton.jit
def l2norm(values, normed, count, DK: tl.constexpr, C: tl.constexpr, BK: tl.constexpr):
    """x / sqrt(sum x^2 + 1e-6), summed in float32: values [count, DK] -> normed. One program has C of them."""
    first = tl.program_id(0).to(tl.int64) * C
    rows = load_rows(values, first, count, 0, C, DK, BK).to(tl.float32)
    length = tl.sum(rows * rows, axis=1) + 1e-6
    store_rows(normed, rows * tl.rsqrt(length)[:, None], first, count, 0, C, DK, BK)


@triton.jit
def convolve(values, weight, tail, lengths, summed, after, DK: tl.constexpr, DV: tl.constexpr, BV: tl.constexpr):
    """One token of a causal convolution of DK taps over DV channels: y_c = sum_j weight_cj column_cj, the columns being
    tail [B, DV, DK - 1] and then values [B, DV] -> summed [B, DV], and in `after` the tail, which a row without a token
    (lengths [B]) keeps. One program has BV channels of a row.
    """
    columns = tl.cdiv(DV, BV)
    row = (tl.program_id(0) // columns).to(tl.int64)
    channel = (tl.program_id(0) % columns) * BV + tl.arange(0, BV)
    inside = channel < DV
    here = row * DV + channel
    new = tl.load(values + here, mask=inside, other=0.0).to(tail.dtype.element_ty)
    total = tl.zeros([BV], tl.float32)
    old = new
    real = tl.load(lengths + row) > 0
    for j in tl.static_range(DK - 1):
        before, old = old, tl.load(tail + here * (DK - 1) + j, mask=inside, other=0.0)
        total += old.to(tl.float32) * tl.load(weight + channel * DK + j, mask=inside, other=0.0).to(tl.float32)
        if j > 0:
            tl.store(after + here * (DK - 1) + j - 1, tl.where(real, old, before), mask=inside)
    tl.store(after + here * (DK - 1) + DK - 2, tl.where(real, new, old), mask=inside)
    total += new.to(tl.float32) * tl.load(weight + channel * DK + DK - 1, mask=inside, other=0.0).to(tl.float32)
    tl.store(summed + here, total, mask=inside)
