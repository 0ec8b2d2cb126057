"""Score `newest`: the latest pairs of each head, so that its window is longer by its slots: what others must beat."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, fx

from sleepc.passes.keep.contract import HeadPairs, Score, WindowPairs
from sleepc.passes.lib.emit import Emit, aten


class NewestScore(Score):
    """The position; exact to 2^24 tokens, after which neighbours may be equal."""

    name: ClassVar[str] = "newest"

    def emit(self, e: Emit, pairs: WindowPairs) -> fx.Node:
        """For every head."""
        position = e.unsqueeze(e.cast(pairs.position, torch.float32), 1)
        return e.call(aten.expand.default, position, [-1, pairs.heads, -1])

    def naive(self, pairs: HeadPairs) -> Tensor:
        """As a number."""
        return torch.tensor(list(pairs.positions), dtype=torch.float64)

    def in_words(self) -> str:
        """The latest."""
        return "the newest"
