"""Score `probe`: a pair is worth keeping if questions about a text look at pairs with such keys.

A linear probe of each KV head: measured once, by least squares (sleepc/train/probes.py), and zero until then.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, fx

from sleepc.passes.keep.contract import HeadPairs, Score, WindowPairs
from sleepc.passes.keep.key import TINY, KeyScore, along, direction, over_length
from sleepc.passes.lib.emit import Emit


class ProbeScore(Score):
    """w . k/|k| - cos(k, mean of k/|k| over the window), keys before positions, w [d_k] the head's probe."""

    name: ClassVar[str] = "probe"
    probed: ClassVar[bool] = True

    def emit(self, e: Emit, pairs: WindowPairs) -> fx.Node:
        """One product: with the probe less the direction that `key` takes off."""
        assert pairs.probe is not None
        scale = over_length(e, pairs.k)
        wanted = e.sub(e.unsqueeze(pairs.probe, 0, 2), direction(e, pairs, scale))
        return along(e, pairs.k, scale, wanted)

    def naive(self, pairs: HeadPairs) -> Tensor:
        """With the mean that `key` has."""
        assert pairs.probe is not None
        length = (pairs.k.square().sum(1) + TINY).sqrt()
        return pairs.k @ pairs.probe / length + KeyScore().naive(pairs)

    def in_words(self) -> str:
        """As far as the probe knows."""
        return "those that questions would look at"
