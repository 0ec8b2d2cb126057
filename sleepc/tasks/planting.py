"""Streams with items planted at given distances from their end, and the questions that follow them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sleepc.errors import UsageError
from sleepc.runtime.steps import IntArray
from sleepc.tasks.source import StreamSource

Ids = tuple[int, ...]
ALONE = 1 << 20  # tokens that a single item may have


@dataclass(frozen=True)
class Item:
    """`planted` stands in the stream; `question` is read after it; of the `candidates` the first is the right one."""

    planted: Ids
    question: Ids
    candidates: tuple[Ids, ...]


@dataclass(frozen=True)
class Sample:
    """A stream [T], and its items by the number of tokens between their end and the stream's."""

    tokens: IntArray
    items: dict[int, Item]

    @property
    def length(self) -> int:
        """Tokens of the stream with the longest question and answer."""
        asked = [len(item.question) + len(c) for item in self.items.values() for c in item.candidates]
        return len(self.tokens) + max(asked)


@dataclass(frozen=True)
class Setup:
    """Of how many streams, from which seed, and how far back (in tokens, ascending) something is planted; `sinks`
    tokens at the beginning, which attention keeps forever, hold none of it.
    """

    distances: tuple[int, ...]
    samples: int = 4
    sinks: int = 0
    seed: int = 0

    @property
    def gap(self) -> int:
        """Tokens that an item may have: they must not overlap."""
        return int(np.diff(self.distances).min(initial=ALONE))


def plant(source: StreamSource, setup: Setup, rows: Sequence[Sequence[Item]], rng: np.random.Generator) -> list[Sample]:
    """Streams of equal length with `rows[b][i]` at distance i. Raises UsageError if items would overlap."""
    longest = max(len(item.planted) for row in rows for item in row)
    if longest > setup.gap:
        raise UsageError(
            f"what is planted has {longest} tokens, and two distances are {setup.gap} tokens apart",
            where="--distances",
            fix="Choose distances (in windows) that are further apart.",
        )
    length = setup.sinks + longest + setup.distances[-1]
    samples = []
    for piece, row in zip(source.pieces(len(rows), length, rng), rows, strict=True):
        tokens = piece.copy()
        for distance, item in zip(setup.distances, row, strict=True):
            end = length - distance
            tokens[end - len(item.planted) : end] = item.planted
        stream = np.concatenate([np.array(source.opening, dtype=np.int64), tokens])
        samples.append(Sample(stream, dict(zip(setup.distances, row, strict=True))))
    return samples
