"""Needles: the value of a key that was told once among other words. (RULER, arXiv 2404.06654: niah_single and
niah_multikey, by words of a small vocabulary.)

`needle`: one pair "k07 v12" in a haystack of random noise words, of `length` words in all, at any place that leaves
`tail` words after it. `multikey`: nothing but pairs, all keys and all values different (RULER's multikey_2); some are
asked for, the `tail` pairs at the end are not. With a tail of a window, what is asked has left attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sleepc.tasks.puzzle import Example, Question, Words, check, in_turn, named, refusal

ASK = "?"
NOISE = 8


@dataclass(frozen=True)
class Needle:
    """Which value was told of a key, once in so many words of noise."""

    by: ClassVar[str] = "length"
    length: tuple[int, ...] = (64, 256)
    tail: int = 0
    keys: int = 32
    values: int = 32

    def __post_init__(self) -> None:
        check(self, zeros=["tail"])
        if min(self.length) < self.tail + 2:
            raise refusal(f"a length of {min(self.length)} words has no room for two and a tail of {self.tail}")

    @property
    def vocabulary(self) -> Words:
        """What asks, noise, keys, values."""
        return (ASK, *named("n", NOISE), *named("k", self.keys), *named("v", self.values))

    def example(self, index: int, rng: np.random.Generator) -> Example:
        """See Puzzle."""
        length = in_turn(self.length, index)
        words = rng.choice(named("n", NOISE), length).tolist()
        key, value = str(rng.choice(named("k", self.keys))), str(rng.choice(named("v", self.values)))
        at = int(rng.integers(length - self.tail - 1))
        words[at : at + 2] = key, value
        return Example(tuple(words), (Question((ASK, key), (value,), length),))


@dataclass(frozen=True)
class MultiKey:
    """Which value was told of a key, where so many pairs were told and nothing else."""

    by: ClassVar[str] = "pairs"
    pairs: tuple[int, ...] = (4, 8, 16, 32)
    tail: int = 0
    questions: int = 4
    keys: int = 64
    values: int = 64

    def __post_init__(self) -> None:
        check(self, zeros=["tail"])
        if max(self.pairs) > min(self.keys, self.values):
            raise refusal(
                f"{max(self.pairs)} pairs need as many keys and values, and there are {self.keys} and {self.values}"
            )
        if min(self.pairs) < self.tail + self.questions:
            raise refusal(
                f"{min(self.pairs)} pairs are too few for {self.questions} questions and a tail of {self.tail}"
            )

    @property
    def vocabulary(self) -> Words:
        """A point, what asks, keys, values."""
        return (".", ASK, *named("k", self.keys), *named("v", self.values))

    def example(self, index: int, rng: np.random.Generator) -> Example:
        """See Puzzle."""
        count = in_turn(self.pairs, index)
        keys = rng.permutation(named("k", self.keys))[:count].tolist()
        values = rng.permutation(named("v", self.values))[:count].tolist()
        context = tuple(word for key, value in zip(keys, values, strict=True) for word in (key, value, "."))
        asked = rng.permutation(count - self.tail)[: self.questions].tolist()
        return Example(context, tuple(Question((ASK, keys[i]), (values[i],), count) for i in asked))
