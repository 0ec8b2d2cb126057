"""Variable tracking: all names that got a value by way of each other. (RULER, arXiv 2404.06654, its task vt.)

A chain is a name that is given a value, "x07 = v12.", and `hops` more, each given the name before, "x31 = x07.". The
question is a value; the answer is all names of its chain, in the order in which they were told. Lines stand anywhere
among words of noise, `length` words in all, those of a chain in order and `tail` words of noise after the last.
`chains` of them are told, with different names and values, and one is asked for: with one alone (RULER's default),
whatever was told is the answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np

from sleepc.tasks.fact_order import NOISE, among_noise
from sleepc.tasks.puzzle import Example, Question, Words, check, in_turn, named, refusal

ASK = "?"
LINE = 4  # words


@dataclass(frozen=True)
class Tracking:
    """All names that have a value: the first was given it, each other was given the name before."""

    by: ClassVar[str] = "hops"
    hops: tuple[int, ...] = (1, 2, 4)
    chains: int = 2
    length: int = 128
    tail: int = 0
    names: int = 64
    values: int = 64

    def __post_init__(self) -> None:
        check(self, zeros=["tail"])
        lines = self.chains * (max(self.hops) + 1)
        if self.length < LINE * lines + self.tail:
            raise refusal(f"{self.length} words have no room for {lines} lines of {LINE} and a tail of {self.tail}")
        if lines > self.names or self.chains > self.values:
            have = f"there are {self.names} and {self.values}"
            raise refusal(f"chains have {lines} different names and {self.chains} values, and {have}")

    @property
    def vocabulary(self) -> Words:
        """Marks, noise, names, values."""
        return (".", "=", ASK, *NOISE, *named("x", self.names), *named("v", self.values))

    def example(self, index: int, rng: np.random.Generator) -> Example:
        """See Puzzle."""
        hops = in_turn(self.hops, index)
        names = rng.permutation(named("x", self.names)).tolist()
        values = rng.permutation(named("v", self.values)).tolist()
        chains = [[values[i], *names[i * (hops + 1) : (i + 1) * (hops + 1)]] for i in range(self.chains)]
        lines = [iter([(b, "=", a, ".") for a, b in pairwise(chain)]) for chain in chains]
        told = [next(lines[i]) for i in rng.permutation(self.chains * (hops + 1)) % self.chains]
        value, *answer = chains[0]
        context = among_noise(told, self.length, self.tail, rng)
        return Example(context, (Question((ASK, value), (*answer, "."), hops),))
