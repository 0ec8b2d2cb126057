"""The rules of TRELLIS in whole programs: gates that are vectors, and two tensors of different shapes."""

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
from sleepc.memory.parameters import key_of, of_gate
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
    "channel": {"write": "online", "decay": "channel"},
    "insert": {"strategy": "insert", "consolidation": "recurrent", "passes": 2, "loop": "0:1"},
    "replace": {"strategy": "replace", "rule": "trellis_silu", "features": "dpfp1"},
    "silu": {"rule": "trellis_silu", "passes": 2},
    "dropped": {"keep": {"slots": 3, "score": "key", "budgets": "equal", "dtype": "int8"}},
}


@cache
def converted(name: str, dtype: torch.dtype = torch.float64) -> tuple[ProgramGraphs, Recipe]:
    program, recipe = family("llama", dtype).convert(**{"rule": "trellis", **RECIPES[name]})
    return shaken(program), recipe


def bench(name: str, steps: Any, dtype: torch.dtype = torch.float64) -> Bench:
    program, recipe = converted(name, dtype)
    canonical = family("llama", dtype).canonical
    return Bench(steps, Oracle(canonical, recipe, parameters_of(canonical, program)), make_streams(TOKENS, WINDOW))


@pytest.mark.parametrize("name", RECIPES)
def test_it_is_what_its_reference_says(name: str) -> None:
    made = bench(name, load(converted(name)[0]))
    assert invariants.definition(made) < 1e-12
    assert invariants.chunking(made) < 1e-12
    assert invariants.padding(made) < 1e-12
    assert invariants.saving(made) == 0
    memories = [s for s in converted(name)[0].all_states() if s.role == "memory" and s.block == 0]
    assert [s.part for s in memories] == ["M_K", "M_V"]
    assert all(made.alone[0].state[s.name].any() for s in memories)


def _no_code(t: Tokens, state: States) -> list[Tensor]:
    return RIGHT({**t, "code_v": t["code"]}, state)


def _other_decay(t: Tokens, state: States) -> list[Tensor]:
    return RIGHT({**t, "g_v": t["g"]}, state)


def _other_step(t: Tokens, state: States) -> list[Tensor]:
    return RIGHT({**t, "beta": t["beta_v"]}, state)


def _silu(t: Tokens, state: States) -> list[Tensor]:
    return RULES["trellis_silu"].step(t, state)


RIGHT = RULES["trellis"].step


@pytest.mark.parametrize("step", [_no_code, _other_decay, _other_step, _silu])
def test_a_wrong_step_is_found(step: Callable[..., list[Tensor]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "trellis", replace(RULES["trellis"], step=step, chunk=None))
    assert invariants.definition(bench("replay", load(converted("replay")[0]))) > 1e-3


def _longer(state: States, q: Tensor) -> Tensor:
    """LayerNorm in place of unit length."""
    found = torch.nn.functional.silu(q @ state[0])
    return torch.nn.functional.layer_norm(found, found.shape[-1:]) @ state[1]


def test_a_wrong_read_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "trellis", replace(RULES["trellis"], read=_longer))
    assert invariants.definition(bench("replay", load(converted("replay")[0]))) > 1e-3


def test_codes_begin_equal() -> None:
    """Where they were not trained, and others in another layer."""
    program, _ = family("llama").convert(rule="trellis")
    gates = [of_gate(RULES["trellis"].gates[name]).weight for name in ("code", "code_v")]
    keys, values = (program.params[key_of(0, each)].materialise() for each in gates)
    assert keys.any()
    assert torch.equal(keys, values)
    assert not torch.equal(keys, program.params[key_of(1, gates[0])].materialise())


@pytest.mark.parametrize("name", ["replay", "silu", "insert"])
def test_a_step_of_training_moves_its_gates(name: str) -> None:
    program, recipe = converted(name)
    values = {key: value.detach().clone() for key, value in materialise(program, "cpu").items()}
    gates = [of_gate(RULES[recipe.rule].gates[gate]) for gate in ("code", "code_v", "g_v", "beta_v")]
    chosen = [key_of(0, each) for gate in gates for each in (gate.weight, gate.bias, gate.rate) if each.name]
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


@pytest.mark.parametrize(
    ("style", "name"),
    [
        *(("ort", "replay"), ("portable", "insert"), ("ort", "silu"), ("portable", "replace"), ("ort", "channel")),
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


def test_noise_has_no_matrix_to_run_through() -> None:
    """A bank's keys are no values, nor codes keys."""
    with pytest.raises(UsageError, match="the memory of rule trellis is none"):
        family("llama").convert(rule="trellis", consolidation="hebbian")
