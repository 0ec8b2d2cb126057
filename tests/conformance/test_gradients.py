"""Gradients flow through wake and sleep into every parameter, new or the model's own, and are those of the oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sleepc.ir.parameters import materialise
from sleepc.memory.parameters import parameter_in
from sleepc.verify.memory_values import shaken
from sleepc.verify.oracle import Oracle, parameters_of
from tests.conformance.backends import TRAINER
from tests.families import VOCAB, WINDOW, family

LENGTH = 2 * WINDOW + 5


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", {"passes": 2}),
        ("gemma2", {"strategy": "insert", "passes": 2}),
        ("gpt2", {"eviction": "hard", "write": "online"}),
        ("llama", {"consolidation": "recurrent", "passes": 3, "eviction": "hard", "sinks": 0, "write": "online"}),
        ("llama", {"consolidation": "recurrent", "passes": 2, "loop": "0:2"}),
        ("llama", {"consolidation": "recurrent", "passes": 5, "loop": "0:2", "settle": 0.3}),
        ("gpt2", {"consolidation": "recurrent", "passes": 2, "loop": "middle", "strategy": "replace"}),
    ],
)
def test_gradients_are_those_of_the_definition(name: str, options: dict[str, Any]) -> None:
    subject = family(name)
    step, recipe = subject.convert(**options)
    program = shaken(step)
    tokens = torch.randint(0, VOCAB, (1, LENGTH), generator=torch.Generator().manual_seed(5))
    target = torch.randn(LENGTH, VOCAB, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    own = set(dict(subject.module.named_parameters(remove_duplicate=False)))
    constants = {k: v for k, v in materialise(program, "cpu").items() if k not in own and parameter_in(k) is None}
    values = {k: v for k, v in materialise(program, "cpu").items() if k not in constants}
    parameters = {k: v.detach().clone().requires_grad_() for k, v in values.items()}

    steps = TRAINER.steps_on(program, {**constants, **parameters}, train=True)
    state, out = steps.new_state(1), []
    for start in range(0, LENGTH, WINDOW):
        piece = tokens[:, start : start + WINDOW]
        logits, state = steps.wake_tensors(state, piece, torch.tensor([piece.shape[1]]), "all")
        assert logits is not None
        out.append(logits[0])
        if piece.shape[1] == WINDOW:
            state = steps.sleep_tensors(state)
    found = torch.autograd.grad((torch.cat(out) * target).sum(), list(parameters.values()), allow_unused=True)

    known = parameters_of(subject.canonical, program)
    assert known.keys() == parameters.keys() | constants.keys()
    leaves = {k: known[k].clone().requires_grad_() for k in parameters}
    oracle = Oracle(subject.canonical, recipe, {**known, **leaves})
    read = list(leaves.values())
    wanted = torch.autograd.grad((oracle(tokens).logits()[0] * target).sum(), read, allow_unused=True)
    assert any(g is not None and bool(g.any()) for g in found)
    for key, a, b in zip(parameters, found, wanted, strict=True):
        if b is None or not b.any():
            assert a is None or not a.any(), key
        else:
            assert a is not None, key
            assert float((a - b).abs().max() / b.abs().max()) < 1e-8, key


def test_gradients_reach_the_models_own_weights_and_the_state() -> None:
    step, _ = family("llama").convert()
    program = shaken(step)
    parameters = {k: v.detach().clone() for k, v in materialise(program, "cpu").items()}
    floating = {k: v.requires_grad_() for k, v in parameters.items() if parameter_in(k) is None and "inv_freq" not in k}
    steps = TRAINER.steps_on(program, parameters, train=True)
    state = steps.new_state(1)
    tokens = torch.randint(0, VOCAB, (1, WINDOW))
    _, state = steps.wake_tensors(state, tokens, torch.tensor([WINDOW]), "none")
    state = steps.sleep_tensors(state)
    logits, _ = steps.wake_tensors(state, tokens, torch.tensor([WINDOW]), "last")
    assert logits is not None
    memory = state["0.S"]
    assert memory.requires_grad
    gradients = torch.autograd.grad(logits.square().sum(), [memory, *floating.values()])
    assert all(bool(g.isfinite().all()) and bool(g.any()) for g in gradients)
