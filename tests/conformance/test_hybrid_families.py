"""The hybrids of transformers that people run, each as a tiny model of its own class: against the original inside the
window, against the oracle over several sleeps, and in ONNX Runtime.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sleepc
from sleepc.errors import SleepcWarning
from sleepc.hf.load import load_module
from sleepc.hf.resolve import resolve
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.states import with_role
from sleepc.runtime.steps import Steps
from sleepc.verify.invariants import Bench, inside
from sleepc.verify.memory_values import shaken
from sleepc.verify.oracle import Oracle, parameters_of
from sleepc.verify.original import Original
from sleepc.verify.streams import Stream
from sleepc.verify.verify import make_streams
from tests.backends.onnx.exports import new_folder
from tests.conformance.backends import FORMS, load, runs
from tests.conformance.test_invariants import hold_invariants

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NAMES = (
    "qwen3_5_text qwen3_next olmo_hybrid kimi_linear granitemoehybrid bamba falcon_h1 nemotron_h zamba2 lfm2 lfm2_moe"
)
FAMILIES = tuple(NAMES.split())
RECIPES: dict[str, dict[str, Any]] = {
    "keep": {"keep": {"slots": 3, "budgets": "equal"}, "passes": 2},
    "recurrent": {"consolidation": "recurrent", "passes": 2, "loop": "0:2", "eviction": "hard"},
}
WINDOW, IDS = 8, (4, 60)
TOLERANCE = 1e-4  # recurrent layers compute in float32, also in a float64 model


@cache
def models() -> Any:
    """benchmarks/coverage.py, whose tiny models these are. (`coverage` itself is the name of a package.)"""
    sys.path.append(str(BENCHMARKS))
    spec = spec_from_file_location("coverage_of_families", BENCHMARKS / "coverage.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def checkpoint(name: str) -> Path:
    """A tiny model with random weights."""
    folder = new_folder()
    models().save_model(name, folder)
    return folder


@cache
def converted(name: str, recipe: str, dtype: str = "auto") -> sleepc.Program:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SleepcWarning)  # recurrent passes need training
        return sleepc.convert(checkpoint(name), {"window": WINDOW, "sinks": 2, "dtype": dtype, **RECIPES[recipe]})


def bench(program: sleepc.Program, load: Callable[[ProgramGraphs], Steps]) -> Bench:
    """Steps with shaken memories, the oracle with the same, and three streams."""
    graphs = shaken(program.graphs)
    assert program.canonical is not None
    oracle = Oracle(program.canonical, program.recipe, parameters_of(program.canonical, graphs))
    tokens = np.random.default_rng(3).integers(*IDS, 3 * WINDOW + 3)
    return Bench(load(graphs), oracle, make_streams(tokens, WINDOW))


@pytest.mark.parametrize("name", FAMILIES)
def test_inside_the_window_it_is_the_original(name: str) -> None:
    program = converted(name, "keep")
    assert with_role(program.graphs.all_states(), "own", "tail")
    original = Original(load_module(resolve(checkpoint(name), lambda *_: None), attention="eager"))
    tokens = np.random.default_rng(4).integers(*IDS, WINDOW)
    for count in (1, WINDOW):
        assert inside(load(shaken(program.graphs)), Stream(tokens[:count], (count,)), original) <= TOLERANCE


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", FAMILIES)
def test_over_several_sleeps_it_is_the_oracle(name: str, recipe: str) -> None:
    hold_invariants(bench(converted(name, recipe), load), TOLERANCE)


@pytest.mark.parametrize("form", FORMS["onnx"])
@pytest.mark.parametrize("name", FAMILIES)
def test_in_onnx_runtime(name: str, form: str) -> None:
    subject = runs(form)
    hold_invariants(bench(converted(name, "keep", "float32"), subject.load), subject.tolerance)
