"""Rule 110: the first cell of each state after t steps on a ring. (Do Language Models Need Sleep?, arXiv 2605.26099.)

A state is `width` random bits. One step gives every cell, from its left neighbour, itself and its right neighbour:
111 -> 0, 110 -> 1, 101 -> 1, 100 -> 0, 011 -> 1, 010 -> 1, 001 -> 1, 000 -> 0. The ends are neighbours: with zeros
beyond them the first cell would be 1 for ever once it is 1. The context is state after state, `states` * `width`
words; the i-th "?" after it asks for the first cell of the i-th state. From width / 2 steps on, that depends on all
cells. The paper clears attention after each state, with a window of `width` tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from sleepc.tasks.puzzle import Example, Question, Words, check, in_turn

ASK = "?"


@dataclass(frozen=True)
class Rule110:
    """Where a bit of each ring goes in so many steps: as many in a row as there are states."""

    by: ClassVar[str] = "steps"
    width: int = 24
    states: int = 4
    steps: tuple[int, ...] = (32,)

    def __post_init__(self) -> None:
        check(self)

    @property
    def vocabulary(self) -> Words:
        """The two bits, and what asks."""
        return ("0", "1", ASK)

    def example(self, index: int, rng: np.random.Generator) -> Example:
        """See Puzzle."""
        steps = in_turn(self.steps, index)
        states = rng.integers(0, 2, (self.states, self.width)).astype(bool)
        after = states
        for _ in range(steps):
            after = step(after)
        context = tuple(str(int(cell)) for cell in states.ravel())
        answers = [str(int(ring[0])) for ring in after]
        return Example(context, tuple(Question((ASK,) * (i + 1), (a,), steps) for i, a in enumerate(answers)))


def step(rings: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Rings of cells [..., W] after one step."""
    left, right = np.roll(rings, 1, -1), np.roll(rings, -1, -1)
    found: npt.NDArray[np.bool_] = (rings | right) & ~(left & rings & right)
    return found
