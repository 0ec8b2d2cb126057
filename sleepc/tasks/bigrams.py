"""Switching bigrams: what follows a word now? (A small check for TTT-E2E, arXiv 2512.23675: a table of bigrams holds
for a while, and then another one.)

A table says for each word which one follows it. Runs of it are told, with a point after each, until `span` words stand
there; then comes the next of `tables`. Asked is what follows the first word of a run of the last span, which is any
word, so guessing gives 1 / words. Something else may have followed it before: who keeps all that did is right less
often than who writes over it.
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
        if self.words < 2:
            raise refusal("one word is followed by itself")
        if min(self.span) < 2:
            raise refusal("a span of one word says of none what follows it")

    @property
    def vocabulary(self) -> Words:
        """A point, words."""
        return (".", *named("w", self.words))

    def example(self, index: int, rng: np.random.Generator) -> Example:
        """See Puzzle."""
        span, context, told = in_turn(self.span, index), list[str](), list[tuple[str, str]]()
        for _ in range(self.tables):
            part, told = self._span(span, rng)
            context += part
        first, second = told[rng.integers(len(told))]
        return Example(tuple(context), (Question((first,), (second,), span),))

    def _span(self, span: int, rng: np.random.Generator) -> tuple[list[str], list[tuple[str, str]]]:
        """Runs of a new table with so many words, and the first two of each."""
        words, after = named("w", self.words), rng.integers(0, self.words, self.words)
        text, told, left = list[str](), list[tuple[str, str]](), span
        while left:
            longest = min(left, int(rng.integers(2, LONGEST + 1)))
            length = left if left - longest == 1 else longest  # no word stands alone
            run = [int(rng.integers(self.words))]
            while len(run) < length:
                run.append(int(after[run[-1]]))
            told.append((words[run[0]], words[run[1]]))
            text += [*(words[i] for i in run), "."]
            left -= length
        return text, told
