"""Score `probe`: a pair is worth keeping if questions about a text look at pairs with such keys.

A linear probe of each KV head: measured once, by least squares (sleepc/train/probes.py), and zero until then.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, fx

from sleepc.passes.keep.contract import HeadPairs, Score, WindowPairs
from sleepc.passes.keep.key import TINY, KeyScore, unit
from sleepc.passes.lib.emit import Emit, aten


class ProbeScore(Score):
    """w . k/|k| - cos(k, mean of k/|k| over the window), keys before positions, w [d_k] the head's probe."""

    name: ClassVar[str] = "probe"
    probed: ClassVar[bool] = True

    def emit(self, e: Emit, pairs: WindowPairs) -> fx.Node:
        """`key`, and what the probe says."""
        assert pairs.probe is not None
        along = e.mul(unit(e, pairs.k), e.unsqueeze(pairs.probe, 0, 2))
        return e.add(KeyScore().emit(e, pairs), e.call(aten.sum.dim_IntList, along, [-1], False))

    def naive(self, pairs: HeadPairs) -> Tensor:
        """With the mean that `key` has."""
        assert pairs.probe is not None
        length = (pairs.k.square().sum(1) + TINY).sqrt()
        return pairs.k @ pairs.probe / length + KeyScore().naive(pairs)

    def in_words(self) -> str:
        """As far as the probe knows."""
        return "those that questions would look at"
