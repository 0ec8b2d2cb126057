"""Score `key`: a pair is worth keeping if its key is unlike the others of its window (KeyDiff, arXiv 2504.15364)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, fx

from sleepc.passes.keep.contract import HeadPairs, Score, WindowPairs
from sleepc.passes.lib.emit import Emit, aten

TINY = 1e-12  # added to the squared length of a key, which may be zero


class KeyScore(Score):
    """-cos(k, mean of k/|k| over the window), keys before positions."""

    name: ClassVar[str] = "key"

    def emit(self, e: Emit, pairs: WindowPairs) -> fx.Node:
        """With the mean's direction by the sum of unit keys."""
        keys = unit(e, pairs.k)
        return e.neg(e.call(aten.sum.dim_IntList, e.mul(keys, direction(e, keys, pairs.read)), [-1], False))

    def naive(self, pairs: HeadPairs) -> Tensor:
        """As the formula stands there."""
        k = pairs.k
        length = (k.square().sum(1) + TINY).sqrt()
        mean = (k / length[:, None]).mean(0)
        size = (mean.square().sum() + TINY / len(k) ** 2).sqrt()
        return -(k @ mean) / (length * size)

    def in_words(self) -> str:
        """Unlike the others."""
        return "those whose keys are least like the others of their window"


def direction(e: Emit, keys: fx.Node, read: fx.Node) -> fx.Node:
    """Graph: the direction [B,Hkv,1,d_k] of the mean of unit keys [B,Hkv,L,d_k] that were read, bool [B,L]."""
    return unit(e, e.call(aten.sum.dim_IntList, e.where(e.unsqueeze(read, 1, -1), keys, 0.0), [2], True))


def unit(e: Emit, x: fx.Node) -> fx.Node:
    """Graph: x / |x| over the last dimension."""
    squares = e.call(aten.sum.dim_IntList, e.mul(x, x), [-1], True)
    return e.mul(x, e.call(aten.rsqrt.default, e.call(aten.add.Scalar, squares, TINY)))
