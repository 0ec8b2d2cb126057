"""(I + A)^-1 for a strictly lower triangular A, as a chunk of the delta rule needs it.

A is taken apart into blocks of 16 on its diagonal, which are solved row by row, all at once, and the blocks below;
then neighbours are merged, [[X, 0], [-Y A X, Y]], until one is left. The doubling product (I - A)(I + A^2)(I + A^4)..
needs no substitution and is useless: with repeated tokens and float32 it is off by 1e10 at 64 tokens. Products are
exact float32, on ordinary cores: they are few, and of three products of TF32 the registers are not enough.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _quarters(a, N: tl.constexpr, HALF: tl.constexpr):
    """[N, 2 HALF, 2 HALF] -> the blocks on the diagonal [2 N, HALF, HALF], neighbours together, and those below it
    [N, HALF, HALF].
    """
    parts = tl.permute(tl.reshape(a, [N, 2, HALF, 2, HALF]), [0, 2, 4, 1, 3])
    left, right = tl.split(parts)
    first, below = tl.split(left)
    _, second = tl.split(right)
    return tl.reshape(tl.permute(tl.join(first, second), [0, 3, 1, 2]), [2 * N, HALF, HALF]), below


@triton.jit
def _merge(x, below, N: tl.constexpr, HALF: tl.constexpr):
    """Inverses of neighbours [2 N, HALF, HALF], and what was below them -> [N, 2 HALF, 2 HALF]."""
    first, second = tl.split(tl.permute(tl.reshape(x, [N, 2, HALF, HALF]), [0, 2, 3, 1]))
    low = -tl.dot(tl.dot(second, below, input_precision="ieee"), first, input_precision="ieee")
    above = tl.permute(tl.join(first, tl.zeros_like(first)), [0, 1, 3, 2])
    under = tl.permute(tl.join(low, second), [0, 1, 3, 2])
    both = tl.join(tl.reshape(above, [N, HALF, 2 * HALF]), tl.reshape(under, [N, HALF, 2 * HALF]))
    return tl.reshape(tl.permute(both, [0, 3, 1, 2]), [N, 2 * HALF, 2 * HALF])


@triton.jit
def _substitute(a, SIZE: tl.constexpr):
    """Row by row: a [n, SIZE, SIZE] -> (I + a)^-1 of each. Row i is that of I, less a_ij times row j of the result."""
    row = tl.arange(0, SIZE)
    x = -a
    for i in range(2, SIZE):
        this = row[None, :, None] == i
        old = tl.sum(tl.where(this, x, 0.0), axis=1)
        new = old + tl.sum(old[:, :, None] * x, axis=1)
        x = tl.where(this, new[:, None, :], x)
    return x + tl.where(row[:, None] == row[None, :], 1.0, 0.0)[None, :, :]


@triton.jit
def invert(a, C: tl.constexpr):
    """(I + a)^-1, float32: a [C, C], zero on and above the diagonal; C is 16, 32 or 64."""
    tl.static_assert(C == 16 or C == 32 or C == 64)
    x = tl.reshape(a, [1, C, C])
    if C == 16:
        x = _substitute(x, 16)
    elif C == 32:
        x, below = _quarters(x, 1, 16)
        x = _merge(_substitute(x, 16), below, 1, 16)
    else:
        x, low = _quarters(x, 1, 32)
        x, below = _quarters(x, 2, 16)
        x = _merge(_merge(_substitute(x, 16), below, 2, 16), low, 1, 32)
    return tl.reshape(x, [C, C])
