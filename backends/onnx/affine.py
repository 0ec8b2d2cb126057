"""The delta rules over a known number of tokens in plain operators, without Scan and Loop: S -> M S + B.

In a block of C tokens (I + A) V' = beta (V - e^G K S), A being strictly lower triangular (arXiv 2412.06464, section
3.3): V' is affine in S, so a block is a map of S, and so are two of them in a row. Blocks are joined in pairs, then
pairs, so the number of nodes grows with the logarithm of that of tokens; so do passes, by the bits of their number.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np
import onnx_ir as ir
import torch

from sleepc.backends.onnx.emit import Emitter
from sleepc.backends.onnx.spelling import Tokens
from sleepc.memory.rule import Rule

BLOCK = 8  # with one key repeated and beta 1, powers of A reach 3e-6 of float32 in blocks of 8, 4e-4 of 16, 1e6 of 32
BITS = 7  # of the number of passes after the first: recipes and sweeps have at most 64 in all, a check one more


@dataclass(frozen=True)
class Affine:
    """S -> step S + add; step [B, H, dk, dk], add [B, H, dk, dv], or both of every block [B, H, n, dk, ..]."""

    step: ir.Value
    add: ir.Value

    def __call__(self, e: Emitter, state: ir.Value) -> ir.Value:
        """What becomes of the state."""
        return e("Add", e("MatMul", self.step, state), self.add)

    def after(self, e: Emitter, first: Affine) -> Affine:
        """`first`, then this."""
        return Affine(e("MatMul", self.step, first.step), self(e, first.add))


def known(e: Emitter, count: int | str) -> int | None:
    """A number of tokens, if the graph at hand has but one."""
    size = e.size(count)
    if isinstance(size, int):
        return size
    return None if size.const_value is None else int(size.const_value.numpy()[0])


def whole_sum(e: Emitter, t: Tokens, count: int, state: ir.Value) -> ir.Value:
    """All tokens of a rule that corrects nothing: e^G_T S + sum over t of e^(G_T - G_t) k_t (beta_t v_t)."""
    k, written = t.values["k"], e("Mul", t.values["v"], e("Unsqueeze", t.values["beta"], e.ints(3)))
    if "g" in t.values:
        total = _sums(e, _wide(e, t, "g"), 2)
        last = e("Slice", total, e.ints(count - 1), e.ints(count), e.ints(2))
        k = e("Mul", k, e("Exp", e("Sub", last, total)))
        state = e("Mul", state, e.transpose(e("Exp", last), (0, 1, 3, 2)))
    return e("Add", state, e("MatMul", e.transpose(k, (0, 1, 3, 2)), written))


def one_pass(e: Emitter, rule: Rule, t: Tokens, count: int) -> Affine:
    """All tokens of a rule that corrects, one after another."""
    assert rule.corrects
    blocks = 1 << max(0, ceil(count / BLOCK) - 1).bit_length()
    k, v, beta = (_blocks(e, t, x, blocks, count) for x in ("k", "v", "beta"))
    g = _blocks(e, t, "g", blocks, count) if "g" in t.values else None
    eye = e.const(np.eye(t.dk), np.float32)
    total = None if g is None else _sums(e, g, 3)
    strong = e("Mul", beta, k)
    inverse = _inverse(e, _scores(e, strong, k, total, "g" in t.per_channel))
    from_start = strong if total is None else e("Mul", e("Exp", total), strong)
    to_end, kept = k, eye
    if total is not None:
        last = e("Slice", total, e.ints(BLOCK - 1), e.ints(BLOCK), e.ints(3))
        to_end = e("Mul", e("Exp", e("Sub", last, total)), k)
        kept = e("Mul", eye, e.transpose(e("Exp", last), (0, 1, 2, 4, 3)))
    # what a block writes, and what of it was there before
    written = e("MatMul", inverse, e("Concat", e("Mul", beta, v), from_start, axis=4))
    add, gone = e.several(
        "Split", 2, e("MatMul", e.transpose(to_end, (0, 1, 2, 4, 3)), written), e.ints(t.dv, t.dk), axis=4
    )
    return _joined(e, Affine(e("Sub", kept, gone), add), t, blocks)


def repeated(e: Emitter, again: Affine, state: ir.Value, passes: ir.Value) -> ir.Value:
    """The map, applied passes - 1 times, less than 2^BITS; passes is an int64 without dimensions."""
    left = e("Sub", passes, e.const(1, torch.int64))
    for bit in range(BITS):
        if bit:
            again = again.after(e, again)
        digit = e("Mod", e("Div", left, e.const(1 << bit, torch.int64)), e.const(2, torch.int64))
        state = e("Where", e("Equal", digit, e.const(1, torch.int64)), again(e, state), state)
    return state


def _wide(e: Emitter, t: Tokens, name: str) -> ir.Value:
    """A value of tokens [B, H, T, w], w being the number of channels, or 1."""
    x = t.values[name]
    return x if name in ("k", "v") or name in t.per_channel else e("Unsqueeze", x, e.ints(3))


def _blocks(e: Emitter, t: Tokens, name: str, blocks: int, count: int) -> ir.Value:
    """[B, H, T, w] -> [B, H, n, C, w]; tokens that are none write nothing."""
    x = _wide(e, t, name)
    missing = blocks * BLOCK - count
    if missing:
        x = e("Pad", x, e.ints(0, 0, 0, 0, 0, 0, missing, 0))
    width = t.dv if name == "v" else t.dk if name == "k" or name in t.per_channel else 1
    return e("Reshape", x, e.ints(0, t.heads, blocks, BLOCK, width))


def _sums(e: Emitter, g: ir.Value, axis: int) -> ir.Value:
    """Of each token and those before it."""
    return e("CumSum", g, e.const(axis, np.int64))


def _scores(e: Emitter, rows: ir.Value, k: ir.Value, total: ir.Value | None, per_channel: bool) -> ir.Value:
    """A [.., C, C]: what of the row of token i meets the key of token j < i, as far as that has not decayed."""
    if total is None:
        scores = e("MatMul", rows, e.transpose(k, (0, 1, 2, 4, 3)))
    elif per_channel:
        apart = e("Sub", e("Unsqueeze", total, e.ints(4)), e("Unsqueeze", total, e.ints(3)))
        pairs = e("Mul", e("Unsqueeze", rows, e.ints(4)), e("Unsqueeze", k, e.ints(3)))
        scores = e("ReduceSum", e("Mul", pairs, _decay(e, apart)), e.ints(5), keepdims=0)
    else:
        apart = e("Sub", total, e.transpose(total, (0, 1, 2, 4, 3)))
        scores = e("Mul", e("MatMul", rows, e.transpose(k, (0, 1, 2, 4, 3))), _decay(e, apart))
    return e("Mul", scores, e.const(np.tril(np.ones((BLOCK, BLOCK)), -1), np.float32))


def _decay(e: Emitter, apart: ir.Value) -> ir.Value:
    """e^x for x <= 0, and 1 above, where nobody looks: no infinity comes of it."""
    return e("Exp", e("Min", apart, e.const(0.0, np.float32)))


def _inverse(e: Emitter, a: ir.Value) -> ir.Value:
    """(I + A)^-1 = (I - A)(I + A^2)(I + A^4), since A^8 is 0."""
    assert BLOCK == 8
    eye, squared = e.const(np.eye(BLOCK), np.float32), e("MatMul", a, a)
    twice = e("MatMul", e("Sub", eye, a), e("Add", eye, squared))
    return e("MatMul", twice, e("Add", eye, e("MatMul", squared, squared)))


def _joined(e: Emitter, each: Affine, t: Tokens, blocks: int) -> Affine:
    """The maps of all blocks [B, H, n, ..] as one [B, H, ..], two neighbours after the other."""
    while blocks > 1:
        blocks //= 2
        early, late = zip(
            *(_halves(e, x, t, blocks, width) for x, width in ((each.step, t.dk), (each.add, t.dv))), strict=True
        )
        each = Affine(*late).after(e, Affine(*early))
    return Affine(*(e("Squeeze", x, e.ints(2)) for x in (each.step, each.add)))


def _halves(e: Emitter, x: ir.Value, t: Tokens, pairs: int, width: int) -> tuple[ir.Value, ir.Value]:
    """[B, H, 2 n, dk, w] -> the first of every two, and the second [B, H, n, dk, w]."""
    together = e("Reshape", x, e.ints(0, t.heads, pairs, 2 * t.dk, width))
    early, late = e.several("Split", 2, together, e.ints(t.dk, t.dk), axis=3)
    return early, late
