"""Numbers of animals that are given in terms of others. (After GSM-Infinite, arXiv 2502.05252, its realistic part.)

Words, number range, limits and distractors follow the paper: "The number of X equals" a number from 1 to 4, such a
number plus or times a quantity, or the sum of or the difference between two; a quantity may be "the total number of
animals in P", which is never told: the reader has to add up all animals that are told of P. All values are 1 to `most`.
`noise` other quantities are told by way of those that are needed, which never need them, all sentences in random order.

The graph is simpler than the paper's: a first quantity is a number, every other one that is needed takes an operation
on the one just before (and perhaps on one before that, or with totals=1 on all of its place), and the last is asked
for. So `ops` operations lead to the answer (a total of n takes n - 1), though a difference may take back what one of
them did. With first=1 the question stands first, as in Do Language Models Need Sleep? (arXiv 2605.26099).
The sentence about what is asked for is not among the last `tail`. With stop=0 the answer is the number and no point.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from sleepc.tasks.fact_order import shuffled, with_question
from sleepc.tasks.puzzle import Example, Words, check, in_turn, refusal

ANIMALS = ("lions", "bears", "wolves", "foxes", "owls", "deer", "hares", "otters")
PLACES = ("Oakwood", "Pinehill", "Riverside", "Lakeview", "Stonebridge", "Highfield", "Westbrook", "Northgate")
QUANTITIES = [("the", "number", "of", animal, "in", place) for animal in ANIMALS for place in PLACES]
WORDS = (
    *("the", "number", "of", "in", "The", "What", "is", "equals", "plus", "times"),
    *("sum", "difference", "between", "and", "total", "animals", "Answer", ".", "?", ":"),
)
LARGEST = 4  # number that is told
Operation = tuple[int, Words]  # its value, and how it is told


@dataclass
class Story:
    """What has been told: values by quantity, in order, and sentences; `free` are the quantities that may be."""

    free: list[Words]
    values: dict[Words, int] = field(default_factory=dict)
    sentences: list[Words] = field(default_factory=list)

    def tell(self, operation: Operation) -> Words:
        """Tell the next free quantity; its name."""
        name = self.free.pop()
        self.values[name] = operation[0]
        self.sentences.append(("The", *name[1:], "equals", *operation[1], "."))
        return name

    def animals_in(self, place: str) -> list[int]:
        """The numbers that are told of a place."""
        return [value for name, value in self.values.items() if name[-1] == place]

    def free_outside(self, place: str) -> list[Words]:
        """What may still be told once the total of a place is."""
        return [name for name in self.free if name[-1] != place]


@dataclass(frozen=True)
class GsmWorded:
    """The number of some animals after a chain of operations, told in sentences among others."""

    by: ClassVar[str] = "operations"
    ops: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)
    noise: int = 8
    most: int = 1000
    totals: int = 1
    first: int = 0
    tail: int = 0
    stop: int = 1

    def __post_init__(self) -> None:
        check(self, zeros=["noise", "tail"], flags=["totals", "first", "stop"])
        if max(self.ops) + 1 + self.noise > len(QUANTITIES):
            raise refusal(
                f"{max(self.ops)} operations and a noise of {self.noise} need more than {len(QUANTITIES)} quantities"
            )
        if self.tail > self.noise:
            raise refusal(f"a tail of {self.tail} needs as much noise, and there is {self.noise}")
        if self.most < 2 * LARGEST:
            raise refusal(f"most has to be {2 * LARGEST} or more, and is {self.most}")

    @property
    def vocabulary(self) -> Words:
        """Words of the sentences, animals, places, numbers."""
        return (*WORDS, *ANIMALS, *PLACES, *map(str, range(1, self.most + 1)))

    def example(self, index: int, rng: np.random.Generator) -> Example:
        """See Puzzle."""
        ops = in_turn(self.ops, index)
        story = Story([QUANTITIES[i] for i in rng.permutation(len(QUANTITIES))])
        start = int(rng.integers(1, LARGEST + 1))
        needed, left = [story.tell((start, (str(start),)))], ops
        while left:
            total = self._total(story, needed[-1][-1], left, rng)
            left -= len(story.animals_in(needed[-1][-1])) if total else 1
            needed.append(story.tell(total or self._operation(needed[-1], needed[:-1], story.values, rng)))
        for _ in range(self.noise):
            order = [needed[i] for i in rng.permutation(len(needed))]
            story.tell(self._operation(order[0], order[1:], story.values, rng))
        told = shuffled(story.sentences, [len(needed) - 1], self.tail, rng)
        answer = (str(story.values[needed[-1]]), *["."] * self.stop)
        return with_question(self.first, told, ("What", "is", *needed[-1], "?"), answer, ops)

    def _total(self, story: Story, place: str, left: int, rng: np.random.Generator) -> Operation | None:
        """A number plus the total of a place, of which nothing more is told afterwards; usually None, or if it is
        impossible.
        """
        number, animals, free = int(rng.integers(1, LARGEST + 1)), story.animals_in(place), story.free_outside(place)
        wanted = self.totals and rng.random() < 0.3
        if not wanted or len(animals) > left or len(free) < left + self.noise or number + sum(animals) > self.most:
            return None
        story.free = free
        return number + sum(animals), (str(number), "plus", "the", "total", "number", "of", "animals", "in", place)

    def _operation(
        self, last: Words, others: list[Words], values: dict[Words, int], rng: np.random.Generator
    ) -> Operation:
        """One operation on `last`, with a number or one of the others, whose value is 1 to `most`."""
        fitting: list[Operation] = []
        while not fitting:  # the first quantity is LARGEST at most: a sum with it, or a difference, always fits
            if others and rng.random() < 0.5:
                found = _with_other(last, others[int(rng.integers(len(others)))], values)
            else:
                found = _with_number(last, int(rng.integers(1, LARGEST + 1)), values)
            fitting = [each for each in found if 1 <= each[0] <= self.most]
        return fitting[int(rng.integers(len(fitting)))]


def _with_number(name: Words, number: int, values: dict[Words, int]) -> list[Operation]:
    added = (number + values[name], (str(number), "plus", *name))
    return [added] if number == 1 else [added, (number * values[name], (str(number), "times", *name))]


def _with_other(name: Words, other: Words, values: dict[Words, int]) -> list[Operation]:
    more, less = sorted((name, other), key=lambda each: values[each], reverse=True)
    return [
        (values[name] + values[other], ("the", "sum", "of", *name, "and", *other)),
        (values[more] - values[less], ("the", "difference", "between", *more, "and", *less)),
    ]
