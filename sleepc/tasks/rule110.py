"""Rule 110: the first cell of each state after t steps on a ring. (Do Language Models Need Sleep?, arXiv 2605.26099.)

A state is `width` random bits. One step gives every cell, from its left neighbour, itself and its right neighbour:
111 -> 0, 110 -> 1, 101 -> 1, 100 -> 0, 011 -> 1, 010 -> 1, 001 -> 1, 000 -> 0. The ends are neighbours: with zeros
beyond them the first cell would stay 1 once it is 1. The context is state after state, `states` * `width`
words; the i-th "?" after it asks for the first cell of the i-th state. From width / 2 steps on, that depends on all
cells. The paper clears attention after each state, with a window of `width` tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sleepc.tasks.puzzle import Example, Question, Words, check, in_turn

ASK = "?"


@dataclass(frozen=True)
class Rule110:
    """The first cell of each ring after so many steps, for as many rings in a row as there are states."""

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
        states = rng.integers(0, 2, (self.states, self.width))
        cells = int(_digits(states.T), 2)
        for _ in range(steps):
            cells = step(cells, self.states, self.states * self.width)
        answers = f"{cells:0{self.states * self.width}b}"[: self.states]
        context = tuple(_digits(states))
        return Example(context, tuple(Question((ASK,) * (i + 1), (a,), steps) for i, a in enumerate(answers)))


def step(cells: int, rings: int, bits: int) -> int:
    """Rings after one step, all at once: as a number of so many `bits`, first cells of all rings, second cells .."""
    every = (1 << bits) - 1
    left = cells >> rings | cells << bits - rings & every
    right = cells << rings & every | cells >> bits - rings
    return (cells | right) & ~(left & cells & right)


def _digits(bits: np.ndarray[tuple[int, ...], np.dtype[np.integer]]) -> str:
    """Zeros and ones, row after row."""
    return (bits + ord("0")).astype(np.uint8).tobytes().decode()
