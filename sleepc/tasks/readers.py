"""What reads texts and is asked about them: full attention, a sliding window of equal bytes, the converted model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


def compared(
    canonical: ProgramGraphs, recipe: Recipe, programs: Mapping[str, ProgramGraphs], longest: int, make: Make
) -> dict[str, Reader]:
    """Full attention, for texts of up to `longest` tokens, the sliding window with at most as many bytes of state as
    the first of `programs`, and these, by name. Raises UsageError if no sliding window is as small.
    """
    whole, first = full_attention(canonical, longest), next(iter(programs.values()))
    full = Reader(full_attention_for(canonical, make), whole.window, whole.state_bytes())
    sliding = _reader(equal_window(canonical, recipe, first.state_bytes()), make)
    return {FULL: full, SLIDING: sliding} | {name: _reader(each, make) for name, each in programs.items()}


def _reader(program: ProgramGraphs, make: Make) -> Reader:
    """A program, for texts of any length."""
    steps = make(program)
    return Reader(lambda tokens: steps, program.window, program.state_bytes())
