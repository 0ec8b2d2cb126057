"""A rule from outside, with two state tensors, goes through everything without any other change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from sleepc.errors import UsageError
from sleepc.ops import functional, rules
from sleepc.ops.rules import Rule, States
from tests.ops.cases import Memory, memory, worst

NAME = "delta_momentum"


def _step(k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: States) -> list[Tensor]:
    """P' = (1 - beta) P + beta k (x) (v - S^T k);  S' = exp(g) S + beta P'."""
    s, p = state
    fade = g.exp()[..., None, None] if g.dim() == 2 else g.exp()[..., None]
    strength = beta[..., None, None]
    error = v - torch.einsum("bhk,bhkv->bhv", k, s)
    p = (1 - strength) * p + strength * k[..., None] * error[:, :, None]
    return [fade * s + strength * p, p]


@pytest.fixture(autouse=True)
def momentum() -> Iterator[Rule]:
    rule = Rule(
        name=NAME,
        corrects=True,
        decays=True,
        states=lambda heads, dk, dv: {"S": (heads, dk, dv), "P": (heads, dk, dv)},
        step=_step,
        read=lambda state, q: q @ state[0],
    )
    rules.register(rule)
    yield rule
    del rules.RULES[NAME]


def _states(rule: Rule, x: Memory) -> list[Tensor]:
    rows, heads, dk, dv = x.state.shape
    shapes = rule.states(heads, dk, dv)
    assert list(shapes) == ["S", "P"]
    return [x.state, *(torch.zeros(rows, *s).double() for s in list(shapes.values())[1:])]


def _loop(x: Memory, state: list[Tensor], scale: float) -> list[Tensor]:
    outs = []
    for t in range(x.k.shape[2]):
        state = _step(x.k[:, :, t], x.v[:, :, t], x.g[:, :, t], x.beta[:, :, t], state)
        every = state[0].repeat_interleave(x.q.shape[1] // x.k.shape[1], 1)
        outs.append(scale * torch.einsum("bhk,bhkv->bhv", x.q[:, :, t], every))
    return [torch.stack(outs, 2), *state]


@pytest.mark.parametrize("channel", [False, True])
@pytest.mark.parametrize("through", [functional.delta_rule, torch.ops.sleepc.delta_rule])
def test_delta_rule(momentum: Rule, channel: bool, through: Callable[..., Any]) -> None:
    x = memory(11, channel=channel)
    state = _states(momentum, x)
    want = _loop(x, state, 0.5)
    for chunk in (1, 4, 64):
        got = through(*x.stream, state, rule=NAME, scale=0.5, chunk=chunk)
        assert len(got) == 3
        assert max(map(worst, got, want)) < 1e-12


@pytest.mark.parametrize("through", [functional.delta_rule_read, torch.ops.sleepc.delta_rule_read])
def test_read(momentum: Rule, through: Callable[..., Any]) -> None:
    x = memory(5)
    got = through(x.q, _states(momentum, x), rule=NAME, scale=0.5)
    want = functional.delta_rule_read(x.q, [x.state], rule="delta", scale=0.5)
    assert worst(got, want) < 1e-14


@pytest.mark.parametrize("through", [functional.replay, torch.ops.sleepc.replay])
@pytest.mark.parametrize("passes", [1, 2, 6])
def test_replay_is_the_literal_loop(momentum: Rule, through: Callable[..., Any], passes: int) -> None:
    x = memory(7)
    want, g = _states(momentum, x), x.g
    for _ in range(passes):
        epoch = Memory(x.q, x.k, x.v, g, x.beta, x.state)
        want, g = _loop(epoch, want, 1.0)[1:], torch.zeros_like(g)
    got = through(*x.record, _states(momentum, x), rule=NAME, passes=passes, written=False)
    assert max(map(worst, got, want)) < 1e-12


def test_gradients_reach_every_state(momentum: Rule) -> None:
    x = memory(3, rows=1, heads=2, memories=1)
    state = [y.clone().requires_grad_() for y in _states(momentum, x)]
    got = torch.ops.sleepc.delta_rule(*x.stream, state, rule=NAME, scale=1.0)
    grads = torch.autograd.grad(torch.stack([y.sum() for y in got]).sum(), state)
    assert all(y.abs().max() > 0 for y in grads)


def test_padding_leaves_both_states(momentum: Rule) -> None:
    x = memory(4)
    state = _states(momentum, x)
    q, k, v, g, beta = x.stream
    got = functional.delta_rule(q, k * 0, v, g * 0, beta * 0, state, rule=NAME, scale=1.0)
    assert all(map(torch.equal, got[1:], state))


def test_names_are_unique_and_known(momentum: Rule) -> None:
    with pytest.raises(UsageError, match="a rule named 'delta_momentum' already"):
        rules.register(momentum)
    assert rules.find(NAME) is momentum
    with pytest.raises(UsageError, match="known rules: linear, gated, delta, gated_delta"):
        rules.find("nothing")
