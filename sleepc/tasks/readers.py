"""What reads texts and is asked about them: full attention, a sliding window of equal bytes, the converted model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sleepc.ir.program import ProgramGraphs
from sleepc.recipe import Recipe
from sleepc.runtime.steps import Steps
from sleepc.tasks.equal_window import equal_window
from sleepc.tasks.programs import full_attention, full_attention_for

FULL, SLIDING, CONVERTED = "full", "sliding", "converted"
Make = Callable[[ProgramGraphs], Steps]


@dataclass(frozen=True)
class Reader:
    """`steps` makes the program that reads so many tokens. `state_bytes`: those of one text (of full attention, at the
    longest one); `window`: the tokens between two sleeps.
    """

    steps: Callable[[int], Steps]
    window: int
    state_bytes: int


def full_reader(canonical: ProgramGraphs, longest: int, make: Make) -> Reader:
    """Full attention, for texts of up to `longest` tokens."""
    whole = full_attention(canonical, longest)
    return Reader(full_attention_for(canonical, make), whole.window, whole.state_bytes())


def sliding_reader(canonical: ProgramGraphs, recipe: Recipe, most: int, make: Make) -> Reader:
    """A sliding window with at most so many bytes of state. Raises UsageError if none is as small."""
    return reader(equal_window(canonical, recipe, most), make)


def reader(program: ProgramGraphs, make: Make) -> Reader:
    """A program, for texts of any length."""
    steps = make(program)
    return Reader(lambda tokens: steps, program.window, program.state_bytes())
