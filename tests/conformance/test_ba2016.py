"""Rule `ba2016` in whole programs: a gate without parameters, nothing else, and reads that are more than a product."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from sleepc.errors import UsageError
from sleepc.ir.program import ProgramGraphs
from sleepc.recipe import Recipe
from sleepc.verify import invariants
from sleepc.verify.invariants import Bench
from sleepc.verify.memory_values import shaken
from sleepc.verify.oracle import Oracle, parameters_of
from sleepc.verify.verify import make_streams
from tests.conformance.backends import runs
from tests.families import VOCAB, WINDOW, family

TOKENS = np.random.default_rng(3).integers(0, VOCAB, 2 * WINDOW + 3)
RECIPES: dict[str, dict[str, Any]] = {
    "sleep": {},
    "online": {"strategy": "insert", "consolidation": "recurrent", "passes": 2, "loop": "0:1"},
}


@cache
def converted(name: str, dtype: torch.dtype) -> tuple[ProgramGraphs, Recipe]:
    program, recipe = family("llama", dtype).convert(rule="ba2016", **RECIPES[name])
    return shaken(program), recipe


@pytest.mark.parametrize(
    ("subject", "name"),
    [
        *(("eager", "sleep"), ("eager", "online"), ("ort", "sleep"), ("portable", "online")),
        pytest.param("mlir", "online", marks=pytest.mark.slow),
    ],
)
def test_it_is_what_its_reference_says(subject: str, name: str) -> None:
    on = runs(subject)
    program, recipe = converted(name, on.dtype)
    oracle = Oracle(
        family("llama", on.dtype).canonical, recipe, parameters_of(family("llama", on.dtype).canonical, program)
    )
    made = Bench(on.load(program), oracle, make_streams(TOKENS, WINDOW))
    assert invariants.definition(made) < on.tolerance
    assert invariants.padding(made) < on.tolerance
    assert invariants.saving(made) == 0
    assert made.alone[0].state["0.A"].any()


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ("llama", {"passes": 2}, "does not correct what it wrote"),
        ("llama", {"decay": "channel"}, "has no decay"),
        ("llama", {"features": "dpfp1"}, "needs keys and values of one width, and these have 16 and 8"),
    ],
)
def test_what_does_not_fit_is_refused(model: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        family(model).convert(rule="ba2016", **options)
