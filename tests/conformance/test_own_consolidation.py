"""A consolidation is one class: one that is registered here converts, is verified, exports and is said in words."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, ClassVar

import numpy as np
import pytest
from torch import fx

from sleepc.errors import UsageError
from sleepc.inspection import inspect_program
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.consolidation.block_sleep import BlockSleep
from sleepc.passes.consolidation.contract import Consolidation, Plans, StreamSleep
from sleepc.passes.consolidation.record import write_record
from sleepc.passes.consolidation.registry import CONSOLIDATIONS, register
from sleepc.passes.pipeline import rewritten
from sleepc.passes.plan import Asleep
from sleepc.recipe import Recipe, make_recipe
from sleepc.runtime.steps import Steps
from sleepc.verify import invariants
from sleepc.verify.invariants import Bench
from sleepc.verify.memory_values import shaken
from sleepc.verify.oracle import Oracle, parameters_of
from sleepc.verify.verify import make_streams
from tests.conformance.backends import EXPORTS, load, runs
from tests.families import VOCAB, WINDOW, family


class Halving(Consolidation):
    """A window is written once, and then half of the memory is forgotten."""

    name: ClassVar[str] = "halving"
    share: ClassVar[float] = 0.5

    def asleep(self, recipe: Recipe, plans: Plans, i: int) -> Asleep:
        return Asleep(recorded=plans[i].write == "sleep")

    def check(self, recipe: Recipe) -> None:
        if recipe.passes > 1:
            raise UsageError("a window is halved once", where="--passes")

    def sleep(self, block: BlockSleep) -> dict[str, fx.Node]:
        return {name: block.e.mul(value, self.share) for name, value in write_record(block).items()}

    def remember(self, sleep: StreamSleep) -> None:
        for i, plan in enumerate(sleep.plans):
            if plan.write == "sleep":
                sleep.replay(i, 0, 1)
                sleep.layers[i].memory = [state / 2 for state in sleep.layers[i].memory or []]

    def in_words(self, recipe: Recipe, blocks: int) -> str:
        return "once, then halved"


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    register(Halving())
    yield
    del CONSOLIDATIONS["halving"]


RECIPE: dict[str, Any] = {"window": WINDOW, "sinks": 2, "consolidation": "halving"}


@cache
def converted(name: str, rule: str) -> tuple[ProgramGraphs, Recipe]:
    recipe = make_recipe({**RECIPE, "rule": rule, "overrides": [{"layers": "1", "write": "online"}]})
    dtype = runs(name).dtype if name else family("llama").canonical.dtype
    return shaken(rewritten(family("llama", dtype).canonical, recipe)), recipe


def bench(steps: Steps, made: tuple[ProgramGraphs, Recipe]) -> Bench:
    canonical, (program, recipe) = family("llama", made[0].dtype).canonical, made
    oracle = Oracle(canonical, recipe, parameters_of(canonical, program))
    return Bench(steps, oracle, make_streams(np.random.default_rng(3).integers(0, VOCAB, 2 * WINDOW + 3), WINDOW))


@pytest.mark.parametrize("rule", ["gated_delta", "titans"])
def test_it_is_what_its_oracle_says(rule: str) -> None:
    made = converted("", rule)
    subject = bench(load(made[0]), made)
    assert invariants.definition(subject) < 1e-9
    assert invariants.chunking(subject) < 1e-9
    assert invariants.padding(subject) < 1e-9
    assert invariants.saving(subject) == 0


def test_another_share_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Halving, "share", 0.55)
    made = converted.__wrapped__("", "gated_delta")
    assert invariants.definition(bench(load(made[0]), made)) > 1e-3


def test_an_export_does_the_same() -> None:
    name = next(iter(EXPORTS))
    made = converted(name, "gated_delta")
    assert invariants.definition(bench(EXPORTS[name].load(made[0]), made)) < EXPORTS[name].tolerance


def test_it_is_said_and_refused_by_its_own_words() -> None:
    program, recipe = converted("", "gated_delta")
    assert "once, then halved" in inspect_program(family("llama").canonical, program, recipe).sleep
    with pytest.raises(UsageError, match="halved once"):
        rewritten(family("llama").canonical, make_recipe({**RECIPE, "passes": 2}))
    with pytest.raises(UsageError, match="only recurrent passes after the first can end early"):
        rewritten(family("llama").canonical, make_recipe({**RECIPE, "settle": 0.1}))
