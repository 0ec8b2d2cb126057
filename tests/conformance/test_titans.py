"""A rule is a file and its ONNX spelling: Titans' memory, with a state and two gates that no other rule has.

It converts, is verified against its own reference (which finds a wrong sign), sleeps, is saved, trains and exports.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sleepc
from sleepc.backends.onnx.installed import missing_exporter
from sleepc.ir.compare import max_error
from sleepc.ir.parameters import materialise
from sleepc.ir.program import ProgramGraphs
from sleepc.memory.parameters import key_of, of_gate
from sleepc.memory.registry import RULES
from sleepc.memory.rule import States, Tokens
from sleepc.passes.pipeline import rewrite_stages
from sleepc.passes.runner import run_stages
from sleepc.recipe import Recipe
from sleepc.runtime.session import Session
from sleepc.verify import invariants
from sleepc.verify.invariants import Bench
from sleepc.verify.memory_values import is_silent, shaken, without_memories
from sleepc.verify.oracle import Oracle, parameters_of
from sleepc.verify.streams import gap, state_of
from sleepc.verify.verify import make_streams
from tests.cli.models import save_model
from tests.conformance.backends import TRAINER, load, runs
from tests.families import VOCAB, WINDOW, family

TOKENS = np.random.default_rng(3).integers(0, VOCAB, 2 * WINDOW + 3)
RECIPES: dict[str, dict[str, Any]] = {
    "replay": {},
    "online": {"write": "online", "decay": "channel"},
    "insert": {"strategy": "insert"},
    "recurrent": {"consolidation": "recurrent", "write": "online", "loop": "0:1", "settle": 0.01},
}


def recipe(name: str) -> Recipe:
    return Recipe(rule="titans", window=WINDOW, sinks=2, passes=2, **RECIPES[name])


@cache
def converted(name: str, dtype: torch.dtype = torch.float64) -> ProgramGraphs:
    canonical = family("llama", dtype).canonical
    return shaken(run_stages(canonical, rewrite_stages(recipe(name), len(canonical.layout))))


def bench(name: str, steps: Any, dtype: torch.dtype = torch.float64) -> Bench:
    canonical, program = family("llama", dtype).canonical, converted(name, dtype)
    oracle = Oracle(canonical, recipe(name), parameters_of(canonical, program))
    return Bench(steps, oracle, make_streams(TOKENS, WINDOW))


@pytest.mark.parametrize("name", RECIPES)
def test_it_is_what_its_reference_says(name: str) -> None:
    made = bench(name, load(converted(name)))
    assert invariants.definition(made) < 1e-12
    assert invariants.padding(made) < 1e-12
    assert invariants.saving(made) == 0
    memories = [s for s in converted(name).all_states() if s.role == "memory" and s.block == 0]
    assert [s.part for s in memories] == ["S", "P"]
    assert all(made.alone[0].state[s.name].any() for s in memories)


def _wrong_sign(t: Tokens, state: States) -> list[Tensor]:
    return RIGHT({**t, "eta": -t["eta"]}, state)


def _no_token(t: Tokens, state: States) -> list[Tensor]:
    return RIGHT({**t, "token": torch.ones_like(t["token"])}, state)


def _no_momentum(t: Tokens, state: States) -> list[Tensor]:
    return RIGHT({**t, "eta": torch.zeros_like(t["eta"])}, state)


RIGHT = RULES["titans"].step


@pytest.mark.parametrize("step", [_wrong_sign, _no_token, _no_momentum])
def test_a_wrong_step_is_found(step: Callable[..., list[Tensor]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference is not made from the step: what is wrong in it is no longer what the rule says."""
    monkeypatch.setitem(RULES, "titans", replace(RULES["titans"], step=step, chunk=None))
    made = bench("online", load(converted("online")))
    assert max(invariants.definition(made), invariants.padding(made)) > 1e-3


def test_a_state_is_restored(tmp_path: Path) -> None:
    steps = load(converted("replay"))
    first, second = Session(steps), Session(steps)
    first.feed([TOKENS[: WINDOW + 3].tolist()])
    first.save_state(tmp_path / "state")
    second.load_state(tmp_path / "state")
    rest = TOKENS[WINDOW + 3 :].tolist()
    assert np.array_equal(first.feed([rest], logits="all")[0], second.feed([rest], logits="all")[0])


@pytest.mark.parametrize("name", ["replay", "online", "recurrent"])
def test_a_step_of_training_moves_its_gates(name: str) -> None:
    program = converted(name)
    values = {key: value.detach().clone() for key, value in materialise(program, "cpu").items()}
    momentum = of_gate(RULES["titans"].gates["eta"])
    chosen = [key_of(0, parameter) for parameter in (momentum.weight, momentum.bias)]
    leaves = {key: values[key].requires_grad_() for key in chosen}
    tokens = torch.from_numpy(TOKENS)[None]

    def loss() -> Tensor:
        steps = TRAINER.steps_on(program, values, train=True)
        state = steps.new_state(1)
        for window in (tokens[:, :WINDOW], tokens[:, WINDOW : 2 * WINDOW]):
            logits, state = steps.wake_tensors(state, window, torch.tensor([WINDOW]), "all")
            state = steps.sleep_tensors(state)
        assert logits is not None
        return torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, WINDOW + 1 : 2 * WINDOW])

    before = loss()
    gradients = torch.autograd.grad(before, list(leaves.values()))
    assert all(gradient.any() for gradient in gradients)
    with torch.no_grad():
        for leaf, gradient in zip(leaves.values(), gradients, strict=True):
            leaf -= 1e-3 * gradient / gradient.norm()
    assert loss().detach() < before.detach()


def test_its_silent_baseline_is_without_it() -> None:
    """Whatever the new gates are."""
    program = without_memories(converted("replay"))
    other = without_memories(shaken(converted("replay"), seed=1))
    ids = [TOKENS.tolist()]
    found, wanted = (Session(load(p)).feed(ids, logits="all")[0] for p in (program, other))
    assert float(np.abs(found - wanted).max()) == 0
    canonical = family("llama").canonical
    fresh = run_stages(canonical, rewrite_stages(recipe("insert"), len(canonical.layout)))
    assert is_silent(fresh)
    assert not is_silent(converted("insert"))


@pytest.mark.parametrize(("style", "name"), [("ort", "replay"), ("ort", "online"), ("portable", "recurrent")])
def test_in_onnx_it_is_as_in_eager(style: str, name: str) -> None:
    subject = runs(style)
    program = converted(name, subject.dtype)
    sessions = [Session(steps) for steps in (load(program), subject.load(program))]
    ids = [TOKENS.tolist()]
    eager, onnx = (session.feed(ids, logits="all")[0] for session in sessions)
    assert max_error(torch.from_numpy(onnx), torch.from_numpy(eager)) < subject.tolerance
    assert gap(state_of(sessions[1]), state_of(sessions[0])) < subject.tolerance


def test_from_a_checkpoint_to_a_checked_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way, as users go it: the export passes its own checks, one token repeated among them, where nothing is
    left to learn and P holds rounding alone; `verify` passes, and does not with a wrong sign.
    """
    if reason := missing_exporter():
        pytest.skip(reason)
    model = save_model(tmp_path / "model")
    program = sleepc.convert(model, {"window": 8, "sinks": 2, "rule": "titans", "passes": 2})
    program.save(tmp_path / "artifact")
    assert program.export().report["ok"]
    assert program.verify(against=model).ok
    monkeypatch.setitem(RULES, "titans", replace(RULES["titans"], step=_wrong_sign, chunk=None))
    report = program.verify(against=model)
    assert not report.ok
    assert 4 in report.failed
