"""Rule `titans_mlp` in whole programs: a memory that begins with what its layer has learned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sleepc.errors import UsageError
from sleepc.ir.compare import max_error
from sleepc.ir.parameters import materialise
from sleepc.ir.program import ProgramGraphs
from sleepc.memory.parameters import key_of, of_gate, of_learned
from sleepc.memory.registry import RULES
from sleepc.memory.rule import States, Tokens
from sleepc.recipe import Recipe
from sleepc.runtime.session import Session
from sleepc.verify import invariants
from sleepc.verify.invariants import Bench
from sleepc.verify.memory_values import shaken
from sleepc.verify.oracle import Oracle, parameters_of
from sleepc.verify.streams import gap, state_of
from sleepc.verify.verify import make_streams
from tests.conformance.backends import TRAINER, load, runs
from tests.families import VOCAB, WINDOW, family

TOKENS = np.random.default_rng(3).integers(0, VOCAB, 2 * WINDOW + 3)
RECIPES: dict[str, dict[str, Any]] = {
    "replay": {"passes": 2},
    "online": {"write": "online"},
    "insert": {"strategy": "insert", "consolidation": "recurrent", "passes": 2, "loop": "0:1"},
    "replace": {"strategy": "replace", "features": "dpfp1"},
    "dropped": {"keep": {"slots": 3, "score": "key", "budgets": "equal"}},
    "settled": {"consolidation": "recurrent", "passes": 3, "loop": "0:1", "settle": 0.01},
}


@cache
def converted(name: str, dtype: torch.dtype = torch.float64) -> tuple[ProgramGraphs, Recipe]:
    program, recipe = family("llama", dtype).convert(**{"rule": "titans_mlp", **RECIPES[name]})
    return shaken(program), recipe


def bench(name: str, steps: Any, dtype: torch.dtype = torch.float64) -> Bench:
    program, recipe = converted(name, dtype)
    canonical = family("llama", dtype).canonical
    return Bench(steps, Oracle(canonical, recipe, parameters_of(canonical, program)), make_streams(TOKENS, WINDOW))


@pytest.mark.parametrize("name", RECIPES)
def test_it_is_what_its_reference_says(name: str) -> None:
    made = bench(name, load(converted(name)[0]))
    assert invariants.definition(made) < 1e-11
    assert invariants.chunking(made) < 1e-11
    assert invariants.padding(made) < 1e-11
    assert invariants.saving(made) == 0
    memories = [s for s in converted(name)[0].all_states() if s.role == "memory" and s.block == 0]
    assert [s.part for s in memories] == ["D1", "D2", "P1", "P2"]
    assert all(made.alone[0].state[s.name].any() for s in memories)


RIGHT = RULES["titans_mlp"].step


def _no_momentum(t: Tokens, state: States) -> list[Tensor]:
    return RIGHT({**t, "eta": torch.zeros_like(t["eta"])}, state)


def _nothing_learned(t: Tokens, state: States) -> list[Tensor]:
    return RIGHT(t, [*state[:4], 0 * state[4], state[5]])


def _first_alone(t: Tokens, state: States) -> list[Tensor]:
    new = RIGHT(t, state)
    return [new[0], state[1], new[2], state[3]]


@pytest.mark.parametrize("step", [_no_momentum, _nothing_learned, _first_alone])
def test_a_wrong_step_is_found(step: Callable[..., list[Tensor]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "titans_mlp", replace(RULES["titans_mlp"], step=step, chunk=None))
    assert invariants.definition(bench("replay", load(converted("replay")[0]))) > 1e-3


@pytest.mark.parametrize("name", ["replay", "online", "insert"])
def test_a_step_of_training_moves_what_it_begins_with(name: str) -> None:
    program, _ = converted(name)
    values = {key: value.detach().clone() for key, value in materialise(program, "cpu").items()}
    rule = RULES["titans_mlp"]
    momentum = of_gate(rule.gates["eta"])
    learned = [of_learned(n, each) for n, each in rule.learned.items()]
    leaves = {
        key: values[key].requires_grad_() for key in (key_of(0, p) for p in (momentum.weight, momentum.bias, *learned))
    }
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


@pytest.mark.parametrize(
    ("style", "name"),
    [
        *(("ort", "replay"), ("portable", "replay"), ("portable", "insert"), ("ort", "online")),
        pytest.param("mlir", "replay", marks=pytest.mark.slow),
    ],
)
def test_in_an_export_it_is_as_in_eager(style: str, name: str) -> None:
    subject = runs(style)
    program, _ = converted(name, subject.dtype)
    sessions = [Session(steps) for steps in (load(program), subject.load(program))]
    ids = [TOKENS.tolist()]
    eager, other = (session.feed(ids, logits="all")[0] for session in sessions)
    assert max_error(torch.from_numpy(other), torch.from_numpy(eager)) < subject.tolerance
    assert gap(state_of(sessions[1]), state_of(sessions[0])) < subject.tolerance


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"decay": "channel"}, "rule titans_mlp has no decay per channel"),
        ({"consolidation": "hebbian"}, "the memory of rule titans_mlp is none"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        family("llama").convert(rule="titans_mlp", **options)
