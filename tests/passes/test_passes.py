"""Every pass on text: the program before it, and the program after it or the refusal."""

from __future__ import annotations

import difflib
from contextlib import suppress
from itertools import product
from pathlib import Path

import pytest

from sleepc.errors import SleepcError
from sleepc.passes.facts import SLOTTED
from tests.passes.cases import cases, passes, read

CASES = cases()


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_pass_makes_of_a_text_what_stands_there(path: Path) -> None:
    case = read(path)
    made = case.run()
    difference = difflib.unified_diff(case.result.splitlines(), made.splitlines(), "expected", "made", lineterm="")
    assert made == case.result, "\n".join([str(path.name), *difference])


def test_a_pass_runs_or_says_what_it_needs() -> None:
    """Every pass on a program of every form: `requires` is complete if nothing breaks in another way."""
    first = {path.parent.name: read(path) for path in reversed(CASES)}
    forms = ("drop-noops", "bound-attention", "add-encoder", "add-sleep", "find-rms-norm")
    programs = [first[name].prepared() for name in forms]
    assert len({(p.level, bool(p.states), p.clock is None, SLOTTED.holds(p)) for p in programs}) == len(forms)
    every = [each for case in first.values() for each in case.stage(programs[0]).passes]
    ran = set()
    for each, program in product(every, programs):
        if all(fact.holds(program) for fact in each.requires):
            ran.add(each.name)
            with suppress(SleepcError):
                each.run(program.clone())
    assert ran == set(passes())


def test_every_pass_has_its_cases() -> None:
    assert {path.parent.name for path in CASES} == set(passes())
