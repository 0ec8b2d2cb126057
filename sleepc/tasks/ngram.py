"""n-gram look-up: what followed these letters in a string? (Repeat After Me, arXiv 2402.01032, prefix and suffix keys.)

A string of `length` random letters; the key is `key` different letters that stand in it once, in this order, and the
answer is the `answer` letters that follow them there. (Of a key like "aa" that stands once it is known that no "a"
follows.) With first=0 the key comes last ("$ string" then "| key"), so all of the string has to be kept; with first=1
it comes before the string ("$ key | string" then "|"), and a model may keep the answer alone.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from string import ascii_lowercase
from typing import ClassVar

import numpy as np

from sleepc.tasks.puzzle import Example, Question, Words, check, in_turn, refuse

START, THEN = "$", "|"
TRIES = 100


@dataclass(frozen=True)
class NGram:
    """Which letters followed some others, in a string of so many."""

    by: ClassVar[str] = "length"
    length: tuple[int, ...] = (20, 50, 100)
    key: int = 3
    answer: int = 1
    letters: int = 26
    first: int = 0

    def __post_init__(self) -> None:
        check(self, flags=["first"])
        if self.letters > len(ascii_lowercase):
            refuse(f"there are {len(ascii_lowercase)} letters")
        if min(self.length) < self.key + self.answer:
            refuse(f"a string of {min(self.length)} letters has no room for a key of {self.key} and {self.answer} more")
        if self.letters < self.key:
            refuse(f"a key of {self.key} different letters needs as many, and there are {self.letters}")

    @property
    def vocabulary(self) -> Words:
        """The two marks, letters."""
        return (START, THEN, *ascii_lowercase[: self.letters])

    def example(self, index: int, rng: np.random.Generator) -> Example:
        """See Puzzle. Raises UsageError where no key stands once in a hundred strings."""
        length = in_turn(self.length, index)
        for _ in range(TRIES):
            string = tuple(rng.choice(list(ascii_lowercase[: self.letters]), length).tolist())
            keys = [string[i : i + self.key] for i in range(length - self.key + 1)]
            times = Counter(keys)
            places = [
                i
                for i, key in enumerate(keys[: length - self.key - self.answer + 1])
                if times[key] == 1 and len(set(key)) == self.key
            ]
            if places:
                break
        else:
            refuse(f"no {self.key} of {self.letters} letters stand once among {length}")
        at = int(rng.choice(places))
        end = at + self.key
        context, asked = (
            ((START, *keys[at], THEN, *string), (THEN,)) if self.first else ((START, *string), (THEN, *keys[at]))
        )
        return Example(context, (Question(asked, string[end : end + self.answer], length),))
