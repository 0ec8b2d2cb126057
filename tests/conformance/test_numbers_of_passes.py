"""Sleeps of another number of passes than the program's own."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from sleepc.backends.training_steps import Tensors, TrainingSteps
from sleepc.errors import UsageError
from sleepc.ir.program import ProgramGraphs
from sleepc.verify.memory_values import shaken
from tests.conformance.backends import in_tensors
from tests.families import VOCAB, WINDOW, family, memory_names

RECURRENT: dict[str, Any] = {"consolidation": "recurrent"}
TOKENS = torch.randint(0, VOCAB, (2, 3 * WINDOW), generator=torch.Generator().manual_seed(3))
LOOPS: list[dict[str, Any]] = [
    {"loop": "all"},
    {"loop": "0:2", "write": "online"},
    {"loop": "0:2", "eviction": "hard", "sinks": 0},
    {"loop": "1:2", "strategy": "replace"},
    {"loop": "0:1", "strategy": "insert", "overrides": [{"layers": "2", "strategy": "leave"}]},
]


@cache
def base(passes: int, case: int) -> ProgramGraphs:
    """A program of 3 blocks with shaken memories."""
    return shaken(family("llama").convert(passes=passes, **RECURRENT, **LOOPS[case])[0])


def converted(passes: int, case: int) -> ProgramGraphs:
    """The same; half-lives are those of one pass, whatever the number."""
    program = base(min(passes, 2), case).clone()
    program.params |= base(1, case).params
    if program.loop is not None:
        program.loop.passes = passes
    return program


def slept(steps: TrainingSteps, windows: int, passes: list[int | None]) -> Tensors:
    state = steps.new_state(2)
    for n in range(windows):
        piece = TOKENS[:, n * WINDOW : (n + 1) * WINDOW]
        _, state = steps.wake_tensors(state, piece, torch.full((2,), WINDOW), "none")
        state = steps.sleep_tensors(state, passes[n])
    return state


@pytest.mark.parametrize("case", range(len(LOOPS)))
def test_another_number_is_that_of_another_program(case: int) -> None:
    two, three = (in_tensors(converted(n, case), train=True) for n in (2, 3))
    for wanted, found in (
        (slept(three, 2, [None] * 2), slept(two, 2, [3, 3])),
        (slept(two, 2, [2, None]), slept(three, 2, [2, 2])),
    ):
        assert wanted.keys() == found.keys()
        assert all(torch.equal(wanted[name], found[name]) for name in wanted)


@pytest.mark.parametrize("case", range(len(LOOPS)))
def test_one_pass_is_the_program_without_a_loop(case: int) -> None:
    """But where a memory behind the loop is written in sleeps only: what it writes sees the window alone, as all do
    that evict hard.
    """
    single = converted(1, case)
    one, two = (in_tensors(program, train=True) for program in (single, converted(2, case)))
    wanted, found = slept(one, 2, [None] * 2), slept(two, 2, [1] * 2)
    assert memory_names(single) <= wanted.keys()
    for name in wanted.keys() & found.keys():
        assert torch.allclose(wanted[name], found[name], rtol=1e-9, atol=1e-12), name


def test_a_window_after_one_pass_starts_from_its_memory() -> None:
    """Blocks behind the loop go back to it in the next sleep of more passes."""
    steps = in_tensors(converted(2, 1), train=True)
    state = slept(steps, 1, [1])
    assert bool(state["2.S"].any())
    assert torch.equal(state["2.start.S"], state["2.S"])


@pytest.mark.parametrize(("options", "passes"), [({"passes": 1}, 2), ({"passes": 2}, 0)])
def test_what_cannot_be_asked_for(options: dict[str, Any], passes: int) -> None:
    steps = in_tensors(family("llama").convert(**RECURRENT, **options)[0])
    with pytest.raises(UsageError, match=f"a sleep of {passes} passes"):
        steps.sleep_tensors(steps.new_state(1), passes)
