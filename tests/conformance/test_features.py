"""Features of queries and keys: wider memories, against the formulas; and what the paper says of them."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from sleepc.errors import UsageError
from sleepc.ir.program import ProgramGraphs
from sleepc.memory.features import FEATURES
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
    "elu": {"features": "elu", "rule": "titans"},
    "dpfp1": {"features": "dpfp1", "decay": "channel", "keep": {"slots": 3, "score": "key", "budgets": "equal"}},
    "dpfp3": {"features": "dpfp3", "strategy": "insert", "decay": "channel"},
    "replace": {"features": "dpfp2", "strategy": "replace", "consolidation": "recurrent", "passes": 2, "loop": "0:2"},
}


@cache
def converted(name: str, dtype: torch.dtype) -> tuple[ProgramGraphs, Recipe]:
    program, recipe = family("llama", dtype).convert(**RECIPES[name])
    return shaken(program), recipe


@pytest.mark.parametrize(
    ("subject", "name"),
    [*(("eager", name) for name in RECIPES), ("ort", "dpfp1"), ("portable", "elu")],
)
def test_they_are_what_their_formulas_say(subject: str, name: str) -> None:
    on = runs(subject)
    program, recipe = converted(name, on.dtype)
    canonical = family("llama", on.dtype).canonical
    made = Bench(on.load(program), Oracle(canonical, recipe, parameters_of(canonical, program)), _streams())
    assert invariants.definition(made) < on.tolerance
    assert invariants.padding(made) < on.tolerance
    width = FEATURES[recipe.features].width(8)
    assert next(s.dims[2] for s in program.all_states() if s.role == "memory") == width


def _streams() -> Any:
    return make_streams(TOKENS, WINDOW)


@pytest.mark.parametrize("name", FEATURES)
def test_their_width_is_what_they_say(name: str) -> None:
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    found = FEATURES[name].naive(x)
    assert found.shape == (5, FEATURES[name].width(6))
    assert name == "unit" or (found >= 0).all()


def test_quadrants_of_two_numbers_are_orthogonal() -> None:
    """One feature of four for each (the paper, section 5.3)."""
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    found = FEATURES["dpfp1"].naive(2 * signs)
    assert torch.equal((found > 0).sum(1), torch.ones(4, dtype=torch.int64))
    assert torch.equal(found @ found.T, 16 * torch.eye(4))


def test_unknown_ones_are_refused() -> None:
    with pytest.raises(UsageError, match="no features are named 'relu'"):
        family("llama").convert(features="relu")
    with pytest.raises(UsageError, match="takes queries and keys as they are"):
        family("llama").convert(features="elu", strategy="replace", layout="native")
