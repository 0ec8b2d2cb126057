"""A rule with two state tensors, registered by a test, goes through conversion, sleeps, files and gradients."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from sleepc.ir.parameters import materialise
from sleepc.ir.program import ProgramGraphs
from sleepc.memory.parameters import KEY_MAP, key_of
from sleepc.memory.registry import RULES, register
from sleepc.memory.rule import DECAY, STRENGTH, Rule, State, States, Tokens, matrix
from sleepc.passes.pipeline import rewrite_stages
from sleepc.passes.runner import run_stages
from sleepc.recipe import Recipe
from sleepc.verify import invariants
from sleepc.verify.invariants import Bench
from sleepc.verify.memory_values import shaken
from sleepc.verify.verify import make_streams
from tests.conformance.backends import TRAINER, load
from tests.families import VOCAB, WINDOW, family

MOMENTUM = 0.5


def step(t: Tokens, state: States) -> list[Tensor]:
    """M = e M + k (beta (v - S k)), S = exp(g) S + M; a padding token (k = 0, beta = 0) leaves both as they are."""
    memory, momentum = state
    k, v, g, beta = t["k"], t["v"], t["g"], t["beta"]
    real = (beta > 0).to(memory.dtype)[..., None, None]
    decayed = memory * torch.exp(g)[..., None, None]
    miss = v - (k[..., None, :] @ decayed)[..., 0, :]
    moved = MOMENTUM * momentum + k[..., :, None] * (beta[..., None] * miss)[..., None, :]
    moved = real * moved + (1 - real) * momentum
    return [decayed + real * moved, moved]


def read(state: States, q: Tensor) -> Tensor:
    return q @ state[0]


# A tensor's name says nothing: one like a record, a port's, or a state's of another role is kept by a sleep as well.
@pytest.fixture(params=["M", "hidden_momentum", "records", "start_of_all", "tail2", "keys"])
def rule(request: pytest.FixtureRequest) -> Iterator[Rule]:
    made = Rule(
        name="momentum",
        corrects=True,
        states={"S": State(matrix), request.param: State(matrix)},
        gates={"g": DECAY, "beta": STRENGTH},
        step=step,
        read=read,
        naive=step,
        naive_read=read,
    )
    yield register(made)
    del RULES["momentum"]


def convert(**options: object) -> ProgramGraphs:
    recipe = Recipe(window=WINDOW, sinks=2, passes=2).model_copy(update={"rule": "momentum", **options})
    canonical = family("llama").canonical
    return shaken(run_stages(canonical, rewrite_stages(recipe, len(canonical.layout))))


@pytest.mark.parametrize("options", [{}, {"write": "online"}, {"strategy": "insert"}])
def test_two_state_tensors_through_the_whole_program(rule: Rule, options: dict[str, object]) -> None:
    program = convert(**options)
    tensor = list(rule.states)[1]
    assert {f"0.{tensor}", "0.S"} <= {s.name for s in program.all_states() if s.role == "memory"}
    tokens = np.random.default_rng(3).integers(0, VOCAB, 3 * WINDOW + 3)
    subject = Bench(load(program), None, make_streams(tokens, WINDOW))
    assert invariants.chunking(subject) < 1e-9
    assert invariants.padding(subject) < 1e-9
    assert invariants.saving(subject) == 0
    assert invariants.permuting(subject) < 1e-9
    assert bool(subject.alone[0].state[f"0.{tensor}"].any())


def test_gradients_flow_through_both(rule: Rule) -> None:
    program = convert()
    parameters = {k: v.detach().clone() for k, v in materialise(program, "cpu").items()}
    keys = parameters[key_of(0, KEY_MAP)].requires_grad_()
    steps = TRAINER.steps_on(program, parameters, train=True)
    state = steps.new_state(1)
    _, state = steps.wake_tensors(state, torch.arange(WINDOW)[None], torch.tensor([WINDOW]), "none")
    state = steps.sleep_tensors(state)
    (gradient,) = torch.autograd.grad(state[f"0.{list(rule.states)[1]}"].square().sum(), [keys])
    assert bool(gradient.any())
