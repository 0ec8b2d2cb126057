"""Switching bigrams: what follows a word now? (A small check for TTT-E2E, arXiv 2512.23675: a table of bigrams holds
for a while, and then another one.)

A table says for each word which other one follows it. Runs of it are told, with a point after each, until `span` words
stand there; then comes the next of `tables`. What is asked was told in the last span, and often otherwise before, so
who keeps all that followed a word is right less often than who writes over it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sleepc.tasks.puzzle import Example, Question, Words, check, in_turn, named, refusal

LONGEST = 6  # words of a run


@dataclass(frozen=True)
class Bigrams:
    """The word that follows another one, since the table has changed."""

    by: ClassVar[str] = "span"
    span: tuple[int, ...] = (16, 32, 64)
    tables: int = 2
    words: int = 16

    def __post_init__(self) -> None:
        check(self)
        if self.words < 3:
            raise refusal(f"of {self.words} words each is followed by the other")
        if min(self.span) < 2:
            raise refusal("a span of one word says of none what follows it")

    @property
    def vocabulary(self) -> Words:
        """A point, words."""
        return (".", *named("w", self.words))

    def example(self, index: int, rng: np.random.Generator) -> Example:
        """See Puzzle."""
        span, context, told = in_turn(self.span, index), list[str](), dict[str, str]()
        for _ in range(self.tables):
            part, told = self._span(span, rng)
            context += part
        word = sorted(told)[rng.integers(len(told))]
        return Example(tuple(context), (Question((word,), (told[word],), span),))

    def _span(self, span: int, rng: np.random.Generator) -> tuple[list[str], dict[str, str]]:
        """Runs of a new table with so many words, and what they tell to follow what."""
        words = named("w", self.words)
        after = [(i + int(step)) % self.words for i, step in enumerate(rng.integers(1, self.words, self.words))]
        text, told, left = list[str](), dict[str, str](), span
        while left:
            longest = min(left, int(rng.integers(2, LONGEST + 1)))
            length = left if left - longest == 1 else longest  # no word stands alone
            at = int(rng.integers(self.words))
            for _ in range(length - 1):
                text.append(words[at])
                told[words[at]] = words[after[at]]
                at = after[at]
            text += [words[at], "."]
            left -= length
        return text, told
