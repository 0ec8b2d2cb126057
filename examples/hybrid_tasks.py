"""What the hybrid of examples/hybrid.py reads: text letter by letter, pairs told in text, and k-hop look-up, in one
vocabulary of letters and words. Windows have WINDOW tokens, and what is asked is asked right after the context.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np

from sleepc.tasks.khop import KHop
from sleepc.tasks.puzzle import Example, Puzzle, Question, Words, in_turn, named
from sleepc.verify.texts import default_text

WINDOW = 24
ASK = "?!"  # a word, no letter
PAIRS = 7  # told in a context, and asked for
WORDS = 8  # keys, and as many values
FACTS: dict[str, Any] = {"entities": 4, "relations": 2, "hops": (1, 2)}  # 4 * 2 * 3 tokens: a window
LETTERS = ("\n", *map(chr, range(32, 127)))
VOCABULARY: Words = (*LETTERS, ASK, *named("k", WORDS), *named("v", WORDS), *KHop(**FACTS).vocabulary[1:])


@cache
def letters(held_out: bool) -> str:
    """Python's help topics: the last tenth is held out, the rest is learned from."""
    text = "".join(letter for letter in default_text(1 << 20) if letter in LETTERS)
    cut = len(text) * 9 // 10
    return text[cut:] if held_out else text[:cut]


def _piece(count: int, held_out: bool, rng: np.random.Generator) -> list[str]:
    text = letters(held_out)
    start = int(rng.integers(len(text) - count))
    return list(text[start : start + count])


@dataclass(frozen=True)
class Text:
    """`answer` letters after one more than so many whole windows of text."""

    by: ClassVar[str] = "windows"
    after: tuple[int, ...] = (0, 1, 3)
    answer: int = WINDOW - 1
    held_out: bool = True

    @property
    def vocabulary(self) -> Words:
        """See Puzzle."""
        return VOCABULARY

    def example(self, index: int, rng: np.random.Generator) -> Example:
        """See Puzzle; depths take turns."""
        windows = in_turn(self.after, index)
        read = windows * WINDOW
        text = _piece(read + 1 + self.answer, self.held_out, rng)
        asked = Question((text[read],), tuple(text[read + 1 :]), windows)
        return Example(tuple(text[:read]), (asked,))


@dataclass(frozen=True)
class Recall:
    """Pairs of a key and a value, told in text of `windows` windows and a half; which value is a key's? `sleeps` since
    it was told are none for the last ones, which attention still sees.
    """

    by: ClassVar[str] = "sleeps"
    windows: int = 3
    held_out: bool = True

    @property
    def vocabulary(self) -> Words:
        """See Puzzle."""
        return VOCABULARY

    def example(self, index: int, rng: np.random.Generator) -> Example:
        """See Puzzle."""
        length = self.windows * WINDOW + WINDOW // 2
        words = _piece(length, self.held_out, rng)
        keys, values = (rng.permutation(named(kind, WORDS))[:PAIRS].tolist() for kind in "kv")
        apart = length // PAIRS  # tokens from pair to pair
        questions = []
        for i, (key, value) in enumerate(zip(keys, values, strict=True)):
            place = i * apart + int(rng.integers(apart - 1))
            words[place : place + 2] = key, value
            questions.append(Question((ASK, key), (value,), self.windows - (place + 1) // WINDOW))
        return Example(tuple(words), tuple(questions))


@dataclass(frozen=True)
class Hops(KHop):
    """Facts of two relations that fill one window, in the common vocabulary."""

    entities: int = FACTS["entities"]
    relations: int = FACTS["relations"]
    hops: tuple[int, ...] = FACTS["hops"]
    questions: int = 8

    @property
    def vocabulary(self) -> Words:
        """See Puzzle."""
        return VOCABULARY

    def example(self, index: int, rng: np.random.Generator) -> Example:
        """See Puzzle; without the points."""
        found = super().example(index, rng)
        return Example(tuple(word for word in found.context if word != "."), found.questions)


@dataclass(frozen=True)
class Mixture:
    """What the model is trained on: kinds in turn, one for each `batch` examples."""

    by: ClassVar[str] = "kind"
    batch: int = 1

    @property
    def vocabulary(self) -> Words:
        """See Puzzle."""
        return VOCABULARY

    def example(self, index: int, rng: np.random.Generator) -> Example:
        """See Puzzle."""
        turn, place = divmod(index, self.batch)
        return LEARNED[turn % len(LEARNED)].example(turn * self.batch + place, rng)


LEARNED: tuple[Puzzle, ...] = (Hops(), Recall(held_out=False), Hops(), Text((0,), WINDOW * 7 // 2, held_out=False))
