"""Whether a token reads its memory after its own write or before. Graphs say so, whatever the rule is."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from sleepc.errors import UsageError
from sleepc.ir.compare import max_error
from sleepc.ir.program import ProgramGraphs
from sleepc.recipe import Recipe
from sleepc.runtime.session import Session
from sleepc.verify import invariants
from sleepc.verify.invariants import Bench
from sleepc.verify.memory_values import shaken
from sleepc.verify.oracle import Oracle, parameters_of
from sleepc.verify.verify import make_streams
from tests.conformance.backends import in_tensors, load, runs
from tests.families import VOCAB, WINDOW, family

TOKENS = np.random.default_rng(3).integers(0, VOCAB, 2 * WINDOW + 3)
RECIPES: dict[str, dict[str, Any]] = {
    **{rule: {"rule": rule, "strategy": "insert"} for rule in ("gated_delta", "ba2016", "titans_mlp")},
    "replace": {"strategy": "replace", "decay": "channel"},
    "recurrent": {"write": "online", "consolidation": "recurrent", "passes": 2, "loop": "0:2"},
    "mixed": {"overrides": ({"layers": "1", "write": "online"},)},
}


@cache
def converted(name: str, dtype: torch.dtype = torch.float64, read: str = "before") -> tuple[ProgramGraphs, Recipe]:
    program, recipe = family("llama", dtype).convert(read=read, **RECIPES[name])
    return shaken(program), recipe


def bench(name: str, steps: Any, dtype: torch.dtype = torch.float64, read: str = "before") -> Bench:
    """Steps of a program that reads before, held to an oracle that reads as `read` says."""
    program, recipe = converted(name, dtype)
    canonical, recipe = family("llama", dtype).canonical, recipe.model_copy(update={"read": read})
    return Bench(steps, Oracle(canonical, recipe, parameters_of(canonical, program)), make_streams(TOKENS, WINDOW))


SLOW = ("titans_mlp", "recurrent")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else []) for n in RECIPES])
def test_it_is_what_its_reference_says(name: str) -> None:
    made = bench(name, load(converted(name)[0]))
    assert invariants.definition(made) < 1e-11
    assert invariants.chunking(made) < 1e-11
    assert invariants.padding(made) < 1e-11


@pytest.mark.parametrize("name", ["gated_delta", "replace", "mixed"])
def test_the_other_order_is_another_function(name: str) -> None:
    assert invariants.definition(bench(name, load(converted(name)[0]), read="after")) > 1e-3


@pytest.mark.parametrize(
    ("style", "name"),
    [
        *(("ort", "gated_delta"), ("portable", "gated_delta"), ("ort", "ba2016")),
        pytest.param("mlir", "gated_delta", marks=pytest.mark.slow),
    ],
)
def test_in_an_export_it_is_as_in_eager(style: str, name: str) -> None:
    """Many tokens in a call, and one."""
    subject = runs(style)
    program, _ = converted(name, subject.dtype)
    sessions = [Session(steps) for steps in (load(program), subject.load(program))]
    for part in (TOKENS[:-1], TOKENS[-1:]):
        eager, other = (session.feed([part.tolist()], logits="all")[0] for session in sessions)
        assert max_error(torch.from_numpy(other), torch.from_numpy(eager)) < subject.tolerance


def test_training_sees_the_same() -> None:
    program, _ = converted("gated_delta")
    steps, ids = in_tensors(program, train=True), torch.from_numpy(TOKENS)[None, :WINDOW]
    logits, _ = steps.wake_tensors(steps.new_state(1), ids, torch.tensor([WINDOW]), "all")
    eager = Session(load(program)).feed([ids[0].tolist()], logits="all")[0]
    assert logits is not None
    assert max_error(logits[0].detach(), torch.from_numpy(eager)) < 1e-12


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "no memory is written in wake"),
        ({"strategy": "replace", "layout": "native"}, "the native layout reads after"),
        ({"read": "never"}, "read = 'never'"),
    ],
)
def test_what_has_no_meaning_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        family("llama").convert(**{"read": "before", **options})
