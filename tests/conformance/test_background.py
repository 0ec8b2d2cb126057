"""Sleeps in the background are the same sleeps, bit for bit, on every backend and in every export."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sleepc.runtime.session import Session
from sleepc.runtime.steps import Array, Steps
from tests.conformance.backends import FORMS, RUNNABLE, load, runs
from tests.conformance.cases import RECIPES
from tests.conformance.test_invariants import bench
from tests.families import VOCAB, WINDOW, family

CASES = [("llama", "recurrent-settle"), ("gemma2", "parallel-online"), ("gpt2", "linear")]
EXPORTED = [
    pytest.param(form, marks=[pytest.mark.slow] * bool(i)) for forms in FORMS.values() for i, form in enumerate(forms)
]


def heard(steps: Steps, at_least: int, *, background: bool) -> tuple[list[Array], dict[str, Array], int]:
    """Logits and state of two rows on their own clocks, with a sleep after every piece of text; how many there were."""
    session, random = Session(steps, 2), np.random.default_rng(5)
    session.defers = background
    logits = []
    for sizes in ((WINDOW, WINDOW - 1), (1, 1), (WINDOW - 1, 0), (2, WINDOW + 1), (WINDOW, 3)):
        logits.append(session.feed([random.integers(0, VOCAB, size).tolist() for size in sizes]))
        session.sleep(background=background, at_least=at_least)
    logits.append(session.feed([[1], [2]]))
    return logits, steps.to_named_arrays(session.snapshot().state), session.stats.sleeps


@pytest.mark.parametrize("name", [*RUNNABLE, *EXPORTED])
@pytest.mark.parametrize("case", CASES[:1] + [pytest.param(case, marks=pytest.mark.slow) for case in CASES[1:]])
def test_a_sleep_in_the_background_is_the_same(name: str, case: tuple[str, str]) -> None:
    runs(name)
    steps = bench(name, *case).steps
    counts = set()
    for at_least in (WINDOW, 2):  # what is due; the schedule of a session that sleeps early
        wanted, state, sleeps = heard(steps, at_least, background=False)
        found, other, as_many = heard(steps, at_least, background=True)
        for one, two in zip(wanted, found, strict=True):
            np.testing.assert_array_equal(one, two)
        assert state.keys() == other.keys()
        for key, value in state.items():
            np.testing.assert_array_equal(value, other[key], key)
        assert sleeps == as_many
        counts.add(sleeps)
    assert len(counts) == 2


def test_a_caller_s_autocast_changes_no_bit() -> None:
    """It is one thread's own, and graphs say in what they compute."""
    step, _ = family("nanogpt", torch.float32).convert(**RECIPES["recurrent-settle"])
    steps = load(step)
    wanted, state, _ = heard(steps, 2, background=False)
    for background in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found, other, _ = heard(steps, 2, background=background)
        for one, two in zip(wanted, found, strict=True):
            np.testing.assert_array_equal(one, two)
        for key, value in state.items():
            np.testing.assert_array_equal(value, other[key], key)
