"""Associative retrieval: which digit stood after this letter? (Ba et al., Using Fast Weights to Attend to the Recent
Past, arXiv 1610.06258: strings as "c9k8j3f1??c".)

Letters are all different, digits are not. None of the last `tail` pairs is asked for: with a tail of a window,
attention has lost the pair.
"""

from __future__ import annotations

from dataclasses import dataclass
from string import ascii_lowercase, digits
from typing import ClassVar

import numpy as np

from sleepc.tasks.puzzle import Example, Question, Words, check, in_turn, refusal

ASKED = "??"


@dataclass(frozen=True)
class Associative:
    """The digit that stood after a letter."""

    by: ClassVar[str] = "pairs"
    pairs: tuple[int, ...] = (4, 8, 16)
    letters: int = 26
    digits: int = 10
    tail: int = 0

    def __post_init__(self) -> None:
        check(self, zeros=["tail"])
        if self.letters > len(ascii_lowercase) or self.digits > len(digits):
            raise refusal(f"there are {len(ascii_lowercase)} letters and {len(digits)} digits")
        if max(self.pairs) > self.letters:
            raise refusal(f"{max(self.pairs)} pairs need as many letters, and there are {self.letters}")
        if min(self.pairs) <= self.tail:
            raise refusal(f"none of {min(self.pairs)} pairs stands before the last {self.tail}")

    @property
    def vocabulary(self) -> Words:
        """The mark, letters, digits."""
        return (ASKED, *ascii_lowercase[: self.letters], *digits[: self.digits])

    def example(self, index: int, rng: np.random.Generator) -> Example:
        """See Puzzle."""
        count = in_turn(self.pairs, index)
        letters = [ascii_lowercase[i] for i in rng.permutation(self.letters)[:count]]
        values = [digits[i] for i in rng.integers(0, self.digits, count)]
        at = int(rng.integers(count - self.tail))
        context = tuple(word for pair in zip(letters, values, strict=True) for word in pair)
        return Example(context, (Question((ASKED, letters[at]), (values[at],), count),))
