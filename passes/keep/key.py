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
        scale = over_length(e, pairs.k)
        return along(e, pairs.k, scale, e.neg(direction(e, pairs, scale)))

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


def over_length(e: Emit, x: fx.Node) -> fx.Node:
    """Graph: 1 / |x| over the last dimension, which becomes 1."""
    squares = e.call(aten.sum.dim_IntList, e.mul(x, x), [-1], True)
    return e.call(aten.rsqrt.default, e.call(aten.add.Scalar, squares, TINY))


def direction(e: Emit, pairs: WindowPairs, scale: fx.Node) -> fx.Node:
    """Graph: the direction [B,Hkv,1,d_k] of the mean of k/|k| of the pairs that were read; `scale` [B,Hkv,L,1] is
    1/|k|.
    """
    weights = e.where(e.unsqueeze(pairs.read, 1, -1), scale, 0.0)
    mean = e.call(aten.matmul.default, e.transpose(weights, 2, 3), pairs.k)
    return e.mul(mean, over_length(e, mean))


def along(e: Emit, k: fx.Node, scale: fx.Node, way: fx.Node) -> fx.Node:
    """Graph: way . k/|k| [B,Hkv,L], with ways [B,Hkv,1,d_k] and `scale` [B,Hkv,L,1]."""
    product = e.call(aten.matmul.default, k, e.transpose(way, 2, 3))
    return e.call(aten.squeeze.dim, e.mul(product, scale), 3)
