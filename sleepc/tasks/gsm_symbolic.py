"""Assignments among others that lead nowhere. (GSM-Infinite, arXiv 2502.05252, its symbolic part, from its rules.)

The core are `ops` names in a tree: the root is assigned 0 to 10, every other name its parent, its parent + 1 or its
parent - 1. `noise` other names are a tree of the same kind whose root is assigned nothing, so that none of them has a
value. All assignments are told in random order. With chain=0 the parent is any name before, and the question gives the
value of one of the core: the answer is all of its names that have it, in the vocabulary's order. In such a tree the
way to the root is short (on average about 1.7 steps for 8 operations). With chain=1 the parent is the name just before,
and what the last one is takes all the operations. With first=1 the question stands before the assignments. The
assignments to what is asked for are not among the last `tail`. An answer ends with a point; with stop=0 it does not,
so that it is one word (for models whose words are the task's own: of a number as text, "1" would begin "10").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sleepc.tasks.fact_order import shuffled, with_question
from sleepc.tasks.puzzle import Example, Words, check, in_turn, named, refusal

HIGHEST_ROOT = 10
CHANGES: tuple[Words, ...] = ((), ("+", "1"), ("-", "1"))
MARKS = (".", "?", ":", "=", "+", "-", "assign", "What", "Which", "is", "are", "Answer")


@dataclass(frozen=True)
class GsmSymbolic:
    """The value of a name after a chain of assignments, told among others that lead nowhere."""

    by: ClassVar[str] = "operations"
    ops: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)
    noise: int = 16
    names: int = 64
    chain: int = 1
    first: int = 0
    tail: int = 0
    stop: int = 1

    def __post_init__(self) -> None:
        check(self, zeros=["noise", "tail"], flags=["chain", "first", "stop"])
        if max(self.ops) + self.noise > self.names:
            raise refusal(
                f"{max(self.ops)} operations and {self.noise} names of noise need more than {self.names} names"
            )

        if self.tail >= max(self.noise, 1):
            raise refusal(f"a tail of {self.tail} needs more names of noise than {self.noise}")

    @property
    def vocabulary(self) -> Words:
        """Marks, numbers, names."""
        most = max(self.ops) - 1
        return (*MARKS, *map(str, range(-most, HIGHEST_ROOT + most + 1)), *named("V", self.names))

    def example(self, index: int, rng: np.random.Generator) -> Example:
        """See Puzzle."""
        ops = in_turn(self.ops, index)
        names = rng.permutation(named("V", self.names)).tolist()
        core, noise = names[:ops], names[ops : ops + self.noise]
        root = int(rng.integers(HIGHEST_ROOT + 1))
        lines, changes = self._tree(core, rng)
        values = {core[0]: root}
        for name, (parent, change) in changes.items():
            values[name] = values[parent] + (0, 1, -1)[change]
        lines = [_line(core[0], (str(root),)), *lines, *self._tree(noise, rng)[0]]
        question, asked, answer = self._question(core, values, rng)
        told = shuffled(lines, asked, self.tail, rng)
        return with_question(self.first, told, question, (*answer, *["."] * self.stop), ops)

    def _tree(self, names: list[str], rng: np.random.Generator) -> tuple[list[Words], dict[str, tuple[str, int]]]:
        """Assignments to all names but the first, as lines, and as {name: (parent, which change)}, parents first."""
        found = {}
        for i, name in enumerate(names[1:], 1):
            parent = names[i - 1 if self.chain else int(rng.integers(i))]
            found[name] = parent, int(rng.integers(len(CHANGES)))
        return [_line(name, (parent, *CHANGES[change])) for name, (parent, change) in found.items()], found

    def _question(
        self, core: list[str], values: dict[str, int], rng: np.random.Generator
    ) -> tuple[Words, list[int], Words]:
        """The question, the numbers of the names that it is about, the answer."""
        if self.chain:
            return ("What", "is", core[-1], "?"), [len(core) - 1], (str(values[core[-1]]),)
        value = values[core[int(rng.integers(len(core)))]]
        numbers = [i for i, name in enumerate(core) if values[name] == value]
        return ("Which", "are", str(value), "?"), numbers, tuple(sorted(core[i] for i in numbers))


def _line(name: str, value: Words) -> Words:
    return ("assign", name, "=", *value, ".")
