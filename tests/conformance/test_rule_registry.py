"""A rule with two state tensors, registered by a test, goes through conversion, sleeps, files and gradients."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from sleepc.backends.eager.backend import load
from sleepc.backends.eager.steps import EagerSteps
from sleepc.ir.parameters import materialise
from sleepc.ir.program import ProgramGraphs
from sleepc.ops.rules import RULES, Rule, States, register
from sleepc.passes.pipeline import rewrite_stages
from sleepc.passes.runner import run_stages
from sleepc.recipe import Recipe
from sleepc.verify import invariants
from sleepc.verify.invariants import Bench
from sleepc.verify.shake import shaken
from sleepc.verify.verify import make_streams
from tests.families import VOCAB, WINDOW, family

MOMENTUM = 0.5


def step(k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: States) -> list[Tensor]:
    """M = e M + k (beta (v - S k)), S = exp(g) S + M; a padding token (k = 0, beta = 0) leaves both as they are."""
    memory, momentum = state
    real = (beta > 0).to(memory.dtype)[..., None, None]
    decayed = memory * torch.exp(g)[..., None, None]
    miss = v - (k[..., None, :] @ decayed)[..., 0, :]
    moved = MOMENTUM * momentum + k[..., :, None] * (beta[..., None] * miss)[..., None, :]
    moved = real * moved + (1 - real) * momentum
    return [decayed + real * moved, moved]


def read(state: States, q: Tensor) -> Tensor:
    return q @ state[0]


@pytest.fixture
def rule() -> Iterator[Rule]:
    made = Rule(
        name="momentum",
        corrects=True,
        decays=True,
        states=lambda heads, dk, dv: {"S": (heads, dk, dv), "M": (heads, dk, dv)},
        step=step,
        read=read,
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
    assert {"0.S", "0.M"} <= {s.name for s in program.all_states()}
    tokens = np.random.default_rng(3).integers(0, VOCAB, 3 * WINDOW + 3)
    subject = Bench(load(program), None, make_streams(tokens, WINDOW))
    assert invariants.chunking(subject) < 1e-9
    assert invariants.padding(subject) < 1e-9
    assert invariants.saving(subject) == 0
    assert invariants.permuting(subject) < 1e-9
    assert bool(subject.alone[0].state["0.M"].any())


def test_gradients_flow_through_both(rule: Rule) -> None:
    program = convert()
    parameters = {k: v.detach().clone() for k, v in materialise(program, "cpu").items()}
    keys = parameters["blocks.0.memory.m_k"].requires_grad_()
    steps = EagerSteps(program, parameters, train=True)
    state = steps.new_state(1)
    _, state = steps.wake_tensors(state, torch.arange(WINDOW)[None], torch.tensor([WINDOW]), "none")
    state = steps.sleep_tensors(state)
    (gradient,) = torch.autograd.grad(state["0.M"].square().sum(), [keys])
    assert bool(gradient.any())
