"""What a score is: how much a pair (k, v) of the window that a sleep ends is worth keeping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, fx

from sleepc.passes.lib.emit import Emit

# Scores are multiples of this: of pairs that are alike the older one is kept, however their scores were rounded.
STEP = 2.0**-16


@dataclass(frozen=True)
class WindowPairs:
    """The L pairs of the window in a sleep graph, of every KV head, in float32 or wider: k [B,Hkv,L,d_k] before
    positions, v [B,Hkv,L,d_v]. `position` [B,L]: those of the tokens, which grow as long as pairs are kept, -1 for what
    was not read; `read` bool [B,L]: what was, and is still to be seen. `heads` is Hkv. `probe` [Hkv,d_k] is the block's
    own, for scores that are `probed`.
    """

    k: fx.Node
    v: fx.Node
    position: fx.Node
    read: fx.Node
    heads: int
    probe: fx.Node | None = None


@dataclass(frozen=True)
class HeadPairs:
    """The pairs of the n tokens of a window that were read, of one row and head, as numbers: k [n,d_k] before
    positions, v [n,d_v], the tokens' positions. `head` is the KV head's number, `probe` [d_k] its probe, if it has one.
    """

    k: Tensor
    v: Tensor
    positions: Sequence[int]
    head: int = 0
    probe: Tensor | None = None


class Score:
    """Of the pairs that it has, a head keeps those with the greatest scores (docs/keep.md). A pair gets its score when
    its window ends, and keeps it. What a session has pinned has PINNED_SCORE instead.

    A score that is `probed` reads a vector of each KV head, constant `keep.probe` of a block, which is zero until
    `calibrate` measures it.
    """

    name: ClassVar[str]
    probed: ClassVar[bool] = False

    def emit(self, e: Emit, pairs: WindowPairs) -> fx.Node:
        """Graph: scores [B,Hkv,L]; any for what was not read."""
        raise NotImplementedError

    def naive(self, pairs: HeadPairs) -> Tensor:
        """The same on numbers, for the oracle: [n]. It calls nothing that `emit` calls."""
        raise NotImplementedError

    def in_words(self) -> str:
        """What it keeps, for `inspect`: "the pairs whose keys are least like the others of their window"."""
        raise NotImplementedError
