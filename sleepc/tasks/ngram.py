"""n-gram look-up: what followed these letters in a string? (Repeat After Me, arXiv 2402.01032, prefix and suffix keys.)

A string of `length` random letters; the key is `key` different letters that stand in it once, in this order, and the
answer is the `answer` letters that follow them there. (Of a key like "aa" that stands once it is known that no "a"
follows.) With first=0 the key comes last ("$ string" then "| key"), so all of the string has to be kept; with first=1
it comes before the string ("$ key | string" then "|"), and a model may keep the answer alone. `tail` letters at the end
are never asked for: with a tail of a window, key and answer have left attention.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from string import ascii_lowercase
from typing import ClassVar

import numpy as np

from sleepc.tasks.puzzle import Example, Question, Words, check, in_turn, refusal

START, THEN = "$", "|"
TRIES = 100


@dataclass(frozen=True)
class NGram:
    """The letters that followed some others in a random string."""

    by: ClassVar[str] = "length"
    length: tuple[int, ...] = (20, 50, 100)
    key: int = 3
    answer: int = 1
    letters: int = 26
    tail: int = 0
    first: int = 0

    def __post_init__(self) -> None:
        check(self, zeros=["tail"], flags=["first"])
        if self.letters > len(ascii_lowercase):
            raise refusal(f"there are {len(ascii_lowercase)} letters")
        if min(self.length) < self.key + self.answer + self.tail:
            more = self.answer + self.tail
            raise refusal(f"a string of {min(self.length)} letters has no room for a key of {self.key} and {more} more")
        if self.letters < self.key:
            raise refusal(f"a key of {self.key} different letters needs as many, and there are {self.letters}")

    @property
    def vocabulary(self) -> Words:
        """The two marks, letters."""
        return (START, THEN, *ascii_lowercase[: self.letters])

    def example(self, index: int, rng: np.random.Generator) -> Example:
        """See Puzzle. Raises UsageError if no key stands once in a hundred strings."""
        length = in_turn(self.length, index)
        string, at = self._string(length, rng)
        end = at + self.key
        key, answer = string[at:end], string[end : end + self.answer]
        if self.first:
            return Example((START, *key, THEN, *string), (Question((THEN,), answer, length),))
        return Example((START, *string), (Question((THEN, *key), answer, length),))

    def _string(self, length: int, rng: np.random.Generator) -> tuple[Words, int]:
        """A string, and where a key begins that stands in it once."""
        for _ in range(TRIES):
            string = tuple(rng.choice(list(ascii_lowercase[: self.letters]), length).tolist())
            keys = [string[i : i + self.key] for i in range(length - self.key + 1)]
            times, room = Counter(keys), len(keys) - self.answer - self.tail
            places = [i for i, key in enumerate(keys[:room]) if times[key] == 1 and len(set(key)) == self.key]
            if places:
                return string, int(rng.choice(places))
        raise refusal(f"no {self.key} of {self.letters} letters stand once among {length}")
