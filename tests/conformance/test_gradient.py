"""Consolidation `gradient`: sleeps take steps of gradient descent on MLPs. Its checks are those of the notes on test-time
training: nothing at rate 0, steps no longer than the rate, rows apart, training through them, and what every
consolidation has to hold.
"""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sleepc.artifact import About, load_artifact, save_artifact
from sleepc.errors import SleepcWarning, UsageError
from sleepc.inspection import inspect_program
from sleepc.ir.parameters import materialise
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.roles import SKIPPED
from sleepc.manifest import Source
from sleepc.passes.adapt.add_low_rank import AddLowRank, low_rank_keys
from sleepc.passes.base import Stage
from sleepc.passes.runner import run_stages
from sleepc.recipe import Gradient, Recipe
from sleepc.runtime.session import Session
from sleepc.runtime.steps import Steps
from sleepc.verify import invariants
from sleepc.verify.invariants import Bench
from sleepc.verify.memory_values import shaken, with_parameters, without_memories
from sleepc.verify.oracle import Oracle, parameters_of
from sleepc.verify.verify import make_streams
from tests.conformance.backends import TRAINER, load, runs
from tests.families import VOCAB, WINDOW, family

TOKENS = np.random.default_rng(3).integers(0, VOCAB, 2 * WINDOW + 3)
FAST: dict[str, Any] = {"lr": 2.0, "rank": 5}  # so that a step is seen
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"gradient": FAST, "passes": 2}),
    "steps": ("llama", {"gradient": {**FAST, "steps": 3, "clip": 0.05}, "mlps": "1-2", "eviction": "hard"}),
    "whole": ("llama-tied", {"gradient": {"lr": 1.0, "rank": 0}, "mlps": "1", "sinks": 0}),
    "every-block": ("llama", {"gradient": {**FAST, "weights": "down"}, "mlps": "all"}),
    "insert": ("llama", {"gradient": FAST, "strategy": "insert", "write": "sleep"}),
    "flipped": ("gpt2", {"gradient": FAST, "mlps": "1-2"}),  # positions of tokens, layer norms
    "kept": ("llama", {"gradient": FAST, "keep": {"slots": 3, "score": "key", "budgets": "equal"}}),
    "capped": ("gemma2", {"gradient": FAST, "own_windows": "leave"}),
    "hybrid": ("qwen3-5", {"gradient": FAST, "mlps": "3"}),
    "plain": ("nanogpt", {"gradient": FAST}),
}
SLOW = ("hybrid", "plain", "capped", "insert", "kept", "whole")


@cache
def converted(name: str, dtype: torch.dtype = torch.float64) -> tuple[ProgramGraphs, Recipe]:
    model, options = FAMILIES[name]
    return family(model, dtype).convert(consolidation="gradient", **options)


@cache
def seen(name: str, dtype: torch.dtype = torch.float64) -> ProgramGraphs:
    return shaken(converted(name, dtype)[0])


def bench(name: str, steps: Steps, dtype: torch.dtype = torch.float64) -> Bench:
    canonical = family(FAMILIES[name][0], dtype).canonical
    oracle = Oracle(canonical, converted(name, dtype)[1], parameters_of(canonical, seen(name, dtype)))
    return Bench(steps, oracle, make_streams(TOKENS, WINDOW))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else []) for n in FAMILIES]
)
def test_it_is_what_its_oracle_says(name: str) -> None:
    made = bench(name, load(seen(name)))
    small = 1e-5 if name == "hybrid" else 1e-9  # whose own convolutions and norms are float32
    assert invariants.definition(made) < small
    assert invariants.chunking(made) < small
    assert invariants.padding(made) < small
    assert invariants.saving(made) == 0
    assert invariants.permuting(made) < small
    written = [s.name for s in seen(name).all_states() if s.role == "fast"]
    assert written
    assert all(made.alone[0].state[each].any() for each in written)


@pytest.mark.parametrize(
    ("style", "name"),
    [
        ("ort", "llama"),
        pytest.param("portable", "steps", marks=pytest.mark.slow),
        pytest.param("ort", "flipped", marks=pytest.mark.slow),
        pytest.param("mlir", "llama", marks=pytest.mark.slow),
    ],
)
def test_in_an_export_it_is_what_its_oracle_says(style: str, name: str) -> None:
    subject = runs(style)
    made = bench(name, subject.load(seen(name, subject.dtype)), subject.dtype)
    assert invariants.definition(made) < subject.tolerance
    assert invariants.padding(made) < subject.tolerance
