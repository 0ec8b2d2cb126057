"""Needles: values of keys that were told among other words. (RULER, arXiv 2404.06654: niah_single, niah_multikey,
niah_multivalue and niah_multiquery, by words of a small vocabulary.)

`needle`: one pair "k07 v12" in a haystack of random noise words, of `length` words in all, at any place that leaves
`tail` words after it. Of `needles` keys, each is told with `each` different values; `asked` of the keys are asked for
in one question, and the answer is all of their values, key by key, in the order in which they were told. `multivalue`
and `multiquery` are RULER's numbers of them. `multikey`: nothing but pairs, all keys and all values different (RULER's
multikey_2); some are asked for, the `tail` pairs at the end are not. With a tail of a window, what is asked has left
attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sleepc.tasks.fact_order import NOISE, among_noise
from sleepc.tasks.puzzle import Example, Question, Words, check, in_turn, named, refusal

ASK = "?"


@dataclass(frozen=True)
class Needle:
    """The value of a key, told once among words of noise."""

    by: ClassVar[str] = "length"
    length: tuple[int, ...] = (64, 256)
    tail: int = 0
    needles: int = 1
    each: int = 1
    asked: int = 1
    keys: int = 32
    values: int = 32

    def __post_init__(self) -> None:
        check(self, zeros=["tail"])
        told = self.needles * self.each
        if min(self.length) < self.tail + 2 * told:
            pairs = "a pair" if told == 1 else f"{told} pairs"
            raise refusal(f"a length of {min(self.length)} words has no room for {pairs} and a tail of {self.tail}")
        if self.needles > self.keys or told > self.values:
            have = f"there are {self.keys} and {self.values}"
            raise refusal(f"{self.needles} needles of {self.each} need as many different keys and values, and {have}")
        if self.asked > self.needles:
            raise refusal(f"{self.asked} keys are asked for, and {self.needles} told")

    @property
    def vocabulary(self) -> Words:
        """What asks, noise, keys, values."""
        return (ASK, *NOISE, *named("k", self.keys), *named("v", self.values))

    def example(self, index: int, rng: np.random.Generator) -> Example:
        """See Puzzle."""
        length = in_turn(self.length, index)
        keys = rng.permutation(named("k", self.keys))[: self.needles].tolist()
        values = rng.permutation(named("v", self.values)).tolist()
        order = rng.permutation(self.needles * self.each) % self.needles
        told = [(keys[i], value) for i, value in zip(order, values, strict=False)]
        asked = keys[: self.asked]
        answer = tuple(value for key in asked for other, value in told if other == key)
        return Example(
            among_noise(told, length, self.tail, rng),
            (Question((ASK, *asked), answer, length),),
        )


@dataclass(frozen=True)
class MultiValue(Needle):
    """All values of a key, in order, told among words of noise."""

    each: int = 4


@dataclass(frozen=True)
class MultiQuery(Needle):
    """The values of several keys, asked for at once, told among words of noise."""

    needles: int = 4
    asked: int = 4


@dataclass(frozen=True)
class MultiKey:
    """The value of a key, told among nothing but such pairs."""

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
