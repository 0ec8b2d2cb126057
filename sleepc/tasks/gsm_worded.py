"""Numbers of animals that are told by way of others. (After GSM-Infinite, arXiv 2502.05252, its realistic part.)

Sentences, number range, limits and distractors are the paper's: "The number of X equals" a number from 1 to 4, such a
number plus or times another quantity, or the sum of or the difference between two; all values are 1 to `most`; `noise`
other quantities are told by way of those that are needed, which never need them; all sentences in random order. The
graph is simpler than the paper's: a first quantity is a number, each of `ops` more takes one operation on the one just
before (and, half the time, another one needed before), and the last is asked for. So `ops` operations lead to the
answer, one after the other, though a difference may take back what one of them did. There are no totals over a
hierarchy, which the paper never tells and the reader has to know. With first=1 the question stands before the
sentences, as in Do Language Models Need Sleep? (arXiv 2605.26099).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sleepc.tasks.puzzle import Example, Question, Words, check, in_turn, refuse

ANIMALS = ("lions", "bears", "wolves", "foxes", "owls", "deer", "hares", "otters")
PLACES = ("Oakwood", "Pinehill", "Riverside", "Lakeview", "Stonebridge", "Highfield", "Westbrook", "Northgate")
QUANTITIES = [("the", "number", "of", animal, "in", place) for animal in ANIMALS for place in PLACES]
WORDS = (
    *("the", "number", "of", "in", "The", "What", "is", "equals", "plus", "times"),
    *("sum", "difference", "between", "and", "Answer", ".", "?", ":"),
)
LARGEST = 4  # number that is told


@dataclass(frozen=True)
class GsmWorded:
    """How many animals there are somewhere, after so many operations, told in sentences among others."""

    by: ClassVar[str] = "operations"
    ops: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)
    noise: int = 8
    most: int = 1000
    first: int = 0

    def __post_init__(self) -> None:
        check(self, "noise", "first")
        if max(self.ops) + 1 + self.noise > len(QUANTITIES):
            refuse(
                f"{max(self.ops)} operations and a noise of {self.noise} need more than {len(QUANTITIES)} quantities"
            )
        if self.most < 2 * LARGEST:
            refuse(f"most has to be {2 * LARGEST} or more, and is {self.most}")

    @property
    def vocabulary(self) -> Words:
        """Words of the sentences, animals, places, numbers."""
        return (*WORDS, *ANIMALS, *PLACES, *map(str, range(1, self.most + 1)))

    def example(self, index: int, rng: np.random.Generator) -> Example:
        """See Puzzle."""
        ops = in_turn(self.ops, index)
        chosen = [QUANTITIES[i] for i in rng.permutation(len(QUANTITIES))[: ops + 1 + self.noise]]
        start = int(rng.integers(1, LARGEST + 1))
        values, told = {chosen[0]: start}, [_sentence(chosen[0], (str(start),))]
        needed: list[Words] = [chosen[0]]
        for name in chosen[1 : ops + 1]:
            values[name], words = self._operation(needed[-1], needed[:-1], values, rng)
            told.append(_sentence(name, words))
            needed.append(name)
        for name in chosen[ops + 1 :]:
            order = [needed[i] for i in rng.permutation(len(needed))]
            told.append(_sentence(name, self._operation(order[0], order[1:], values, rng)[1]))
        context = tuple(word for i in rng.permutation(len(told)) for word in told[i])
        question, asked, answer = ("What", "is", *needed[-1], "?"), ("Answer", ":"), (str(values[needed[-1]]), ".")
        if self.first:
            return Example((*question, *context), (Question(asked, answer, ops),))
        return Example(context, (Question((*question, *asked), answer, ops),))

    def _operation(
        self, last: Words, others: list[Words], values: dict[Words, int], rng: np.random.Generator
    ) -> tuple[int, Words]:
        """One operation on `last`, with a number or one of the others: its value, 1 to `most`, and its words."""
        fitting: list[tuple[int, Words]] = []
        while not fitting:  # the first quantity is LARGEST at most: a sum with it, or a difference, always fits
            if others and rng.random() < 0.5:
                found = _with_other(last, others[int(rng.integers(len(others)))], values)
            else:
                found = _with_number(last, int(rng.integers(1, LARGEST + 1)), values)
            fitting = [each for each in found if 1 <= each[0] <= self.most]
        return fitting[int(rng.integers(len(fitting)))]


def _with_number(name: Words, number: int, values: dict[Words, int]) -> list[tuple[int, Words]]:
    added = (number + values[name], (str(number), "plus", *name))
    return [added] if number == 1 else [added, (number * values[name], (str(number), "times", *name))]


def _with_other(name: Words, other: Words, values: dict[Words, int]) -> list[tuple[int, Words]]:
    more, less = sorted((name, other), key=lambda each: values[each], reverse=True)
    return [
        (values[name] + values[other], ("the", "sum", "of", *name, "and", *other)),
        (values[more] - values[less], ("the", "difference", "between", *more, "and", *less)),
    ]


def _sentence(name: Words, words: Words) -> Words:
    return ("The", *name[1:], "equals", *words, ".")
