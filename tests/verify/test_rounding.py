"""Models that choose experts, in half precision: what rounding makes of a choice is no fault of a conversion."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, fx

from sleepc.backends.eager.backend import load
from sleepc.errors import UsageError
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.keep.contract import HeadPairs, WindowPairs
from sleepc.passes.keep.key import KeyScore
from sleepc.passes.keep.registry import SCORES
from sleepc.passes.lib.emit import Emit, aten
from sleepc.runtime.steps import Steps
from sleepc.verify.memory_values import with_parameters
from sleepc.verify.original import Original
from sleepc.verify.rounding import rounding_chooses
from sleepc.verify.verify import Measuring, VerifyReport, verify_program
from tests.families import VOCAB, family

HALF = torch.bfloat16


def other_where(factor: float, *dtypes: torch.dtype) -> Callable[[ProgramGraphs], Steps]:
    """A backend that computes something else with programs of these dtypes."""

    def loaded(program: ProgramGraphs) -> Steps:
        values = {key: param.materialise() * factor for key, param in program.params.items()}
        return load(with_parameters(program, values) if program.dtype in dtypes else program)

    return loaded


def verified(
    name: str, load: Callable[[ProgramGraphs], Steps], dtype: torch.dtype = HALF, **options: Any
) -> VerifyReport:
    made = family(name, dtype)
    step, recipe = made.convert(**options)
    tokens = np.random.default_rng(0).integers(0, VOCAB, 60)
    original = Original(made.module)
    return verify_program(
        step, made.canonical, recipe, tokens.tolist(), original=original, measuring=Measuring(load, perplexity=False)
    )


@pytest.mark.parametrize(("name", "chooses"), [("mixtral", True), ("gpt2", False)])
def test_what_chooses_is_seen_in_the_graphs(name: str, chooses: bool) -> None:
    """Of several results, as of a split, some may be integers: indices, in the order of a rank."""
    program = family(name).canonical
    assert not rounding_chooses(program)
    assert rounding_chooses(replace(program, dtype=HALF)) == chooses


def test_what_rounding_chooses_is_measured_in_float32() -> None:
    """Where experts nearly tie, half precision gives another model's logits; here a backend does so for certain."""
    report = verified("mixtral", other_where(8, HALF))
    assert report.ok
    details = {check.detail for check in report.checks if check.invariant not in (6, 7)}
    assert all("in float32: rounding to bfloat16" in detail for detail in details)
    assert all(check.tolerance <= 1e-3 for check in report.checks if check.tolerance is not None)
    assert not any(
        "in float32" in check.detail for check in verified("mixtral", load).checks if check.invariant in (6, 7)
    )


@pytest.mark.parametrize(
    ("name", "factor", "dtypes"),
    [
        ("llama", 8, (HALF,)),  # nothing is chosen
        ("mixtral", 8, (HALF, torch.float32)),  # wrong in float32 too
        ("mixtral", math.nan, (HALF,)),  # no choice makes these
    ],
)
def test_other_faults_of_half_precision_stay_faults(name: str, factor: float, dtypes: tuple[torch.dtype, ...]) -> None:
    assert {2, 4} <= verified(name, other_where(factor, *dtypes)).failed


def test_what_float32_misses_by_a_little_is_measured_in_float64() -> None:
    """A token that is repeated is such a case for some models (MiniMax-M2 with strategy replace)."""
    slightly = other_where(1 + 3e-5, torch.float32)
    report = verified("llama", slightly, torch.float32)
    assert report.ok
    measured = [check for check in report.checks if "in float64: the model amplifies rounding" in check.detail]
    assert {check.invariant for check in measured} == {1, 2, 3, 4, 5, 8, 9}
    assert all(check.tolerance == 1e-9 for check in measured if check.tolerance is not None and check.invariant != 2)


class Unsteady(KeyScore):
    """What follows the sixth digit of `key`: float32 gives another choice to every way to split a text."""

    name: ClassVar[str] = "unsteady"

    def emit(self, e: Emit, pairs: WindowPairs) -> fx.Node:
        score = e.mul(super().emit(e, pairs), 1e6)
        return e.sub(score, e.call(aten.floor.default, score))

    def naive(self, pairs: HeadPairs) -> Tensor:
        score = 1e6 * super().naive(pairs)
        return score - score.floor()


def test_what_float32_keeps_by_chance_is_measured_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """If two scores nearly tie, sums in another order keep the other pair, and all that follows differs."""
    monkeypatch.setitem(SCORES, "unsteady", Unsteady())
    keep = {"slots": 3, "score": "unsteady", "budgets": "equal"}
    report = verified("llama", load, torch.float32, keep=keep)
    assert report.ok
    assert any("in float64: rounding to float32 makes layers keep other pairs" in c.detail for c in report.checks)
    wrong = other_where(1.5, torch.float32, torch.float64)
    assert 4 in verified("llama", wrong, torch.float32, keep=keep).failed


def test_a_backend_without_float64_is_judged_by_float32() -> None:
    wrong = other_where(1 + 3e-5, torch.float32)

    def narrow(program: ProgramGraphs) -> Steps:
        if program.dtype == torch.float64:
            raise UsageError("there is no float64")
        return wrong(program)

    assert 4 in verified("llama", narrow, torch.float32).failed


@pytest.mark.parametrize(("factor", "dtypes"), [(1.5, (torch.float32,)), (1 + 3e-5, (torch.float32, torch.float64))])
def test_other_faults_of_float32_stay_faults(factor: float, dtypes: tuple[torch.dtype, ...]) -> None:
    assert 4 in verified("llama", other_where(factor, *dtypes), torch.float32).failed
