"""The invariants on the backend for GPUs, whose kernels Triton's interpreter runs here, with what a sleep keeps. Where
there is a GPU the whole suite runs on it.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: pip install '.[triton]'")

from sleepc.backends import table
from sleepc.backends.triton import launch
from sleepc.verify import invariants
from sleepc.verify.invariants import Bench
from sleepc.verify.memory_values import shaken
from tests.conformance.test_invariants import hold_invariants
from tests.conformance.test_kept_pairs import bench, convert
from tests.families import family

TOLERANCE = 2e-5  # float32: as much as the default backend is off in it
KEPT: dict[str, Any] = {"keep": {"slots": 2, "score": "probe"}, "layers": "1"}  # of three layers one has a memory
pytestmark = pytest.mark.skipif(not launch.INTERPRETED, reason="kernels run on the GPU here, and so does the suite")


def interpreted(name: str, options: dict[str, Any]) -> Bench:
    made = convert(name, torch.float32, **options)
    return bench(name, table.find_backend("triton").steps(made[0]), made)


def test_a_memory_that_sleeps_write_in_the_interpreter() -> None:
    """All invariants but that of padding, which takes as long as these together."""
    subject = interpreted("llama", {**KEPT, "write": "sleep", "passes": 2})
    assert invariants.chunking(subject) <= TOLERANCE
    assert invariants.definition(subject) <= TOLERANCE
    assert invariants.state_bytes(subject) == 0
    assert invariants.saving(subject) == 0
    assert invariants.permuting(subject) <= TOLERANCE
    assert invariants.lengths(subject) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["gemma4", "hrm", "diffllama", "inkling"])
def test_packed_streams_and_numbers_by_distance_in_the_interpreter(name: str) -> None:
    step, recipe = family(name, torch.float32).convert()
    program = shaken(step)
    subject = bench(name, table.find_backend("triton").steps(program), (program, recipe))
    assert invariants.chunking(subject) <= TOLERANCE
    assert invariants.definition(subject) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", {**KEPT, "write": "sleep", "passes": 3}),
        ("llama", {**KEPT, "write": "online", "passes": 2}),
        ("gpt2", {**KEPT, "write": "online", "decay": "channel"}),
        ("llama", {"keep": {"budgets": [[2, 5], [0, 1], [3, 0]]}, "layers": "0", "strategy": "insert", "passes": 2}),
        ("llama", {**KEPT, "consolidation": "recurrent", "passes": 2, "loop": "0:2"}),
        ("llama", {**KEPT, "rule": "gated", "passes": 1, "write": "online"}),
    ],
)
def test_every_invariant_in_the_interpreter(name: str, options: dict[str, Any]) -> None:
    hold_invariants(interpreted(name, options), TOLERANCE)
