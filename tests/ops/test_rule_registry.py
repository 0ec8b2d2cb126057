"""A rule from outside, with two state tensors, goes through everything without any other change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from sleepc.errors import UsageError
from sleepc.memory import registry
from sleepc.memory.rule import DECAY, STRENGTH, Gate, Rule, State, States, Tokens, matrix
from sleepc.ops import functional, naive
from tests.ops.cases import Memory, memory, worst

NAME = "delta_momentum"


def _step(t: Tokens, state: States) -> list[Tensor]:
    """P' = (1 - beta) P + beta k (x) (v - S^T k);  S' = exp(g) S + beta P'."""
    s, p = state
    k, v, g, beta = t["k"], t["v"], t["g"], t["beta"]
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
        states={"S": State(matrix), "P": State(matrix)},
        gates={"g": DECAY, "beta": STRENGTH},
        step=_step,
        read=lambda state, q: q @ state[0],
        naive=_step,
        naive_read=lambda state, q: q @ state[0],
    )
    registry.register(rule)
    yield rule
    del registry.RULES[NAME]


def _states(rule: Rule, x: Memory) -> list[Tensor]:
    rows, heads, dk, dv = x.state.shape
    shapes = rule.shapes(heads, dk, dv)
    assert list(shapes) == ["S", "P"]
    return [x.state, *(torch.zeros(rows, *s).double() for s in list(shapes.values())[1:])]


def _loop(x: Memory, state: list[Tensor], scale: float) -> list[Tensor]:
    outs = []
    for t in range(x.k.shape[2]):
        token = {"k": x.k[:, :, t], "v": x.v[:, :, t], "g": x.g[:, :, t], "beta": x.beta[:, :, t]}
        state = _step(token, state)
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
        registry.register(momentum)
    assert registry.find(NAME) is momentum
    with pytest.raises(UsageError, match=r"Known rules: .*gated_delta, lact, linear"):
        registry.find("nothing")


GATE = Gate("sigmoid", weight="w_eta", bias="b_eta")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        *(
            ({"states": {"S": State(matrix), name: State(matrix)}}, f"named '{name}', which is taken")
            for name in (
                "k",
                "v",
                "tail",
                "h",
                "real",
                "live",
                "hidden",
                "position",
                "slept",
                "passes_taken",
                "lengths",
            )
        ),
        *(
            ({"states": {name: State(matrix)}}, "cannot name a state")
            for name in ("record.k", "start.S", "", "x1", "p0")
        ),
        *(({"gates": {name: GATE}}, f"named '{name}', which is taken") for name in ("k", "v", "q", "S")),
        ({"gates": {"a b": GATE}}, "cannot name a gate"),
        ({"gates": {"beta": STRENGTH, "eta": Gate("sigmoid", weight="w_b", bias="b_eta")}}, "parameters .* 'w_b'"),
        ({"gates": {"eta": Gate("sigmoid", weight="w_m", bias="b_eta")}}, "parameters .* 'w_m'"),
        *(
            ({"gates": {"eta": Gate("sigmoid", weight=name, bias="b_eta")}}, "cannot name a parameter of gate eta")
            for name in ("a b", "x.y", "line\n", "ü")
        ),
        ({"gates": {"eta": replace(GATE, activation=cast("Any", "tanh"))}}, "activation 'tanh'"),
        ({"gates": {"eta": Gate("sigmoid")}}, "needs parameters"),
        ({"gates": {"eta": Gate("decay", weight="w_eta", bias="b_eta")}}, "needs parameters"),
        ({"gates": {"one": Gate("one", weight="w_one")}}, "needs parameters"),
        ({"gates": {"code": Gate("code", weight="w_code", bias="b_code")}}, "needs parameters"),
        ({"states": {}}, "at least one state"),
        ({"gates": {}}, "at least one state and one gate"),
        ({"states": {"S": State(matrix), "P": State(matrix)}, "affine": True}, "affine on one tensor"),
    ],
)
def test_rules_that_collide_are_refused(momentum: Rule, change: dict[str, Any], said: str) -> None:
    before = dict(registry.RULES)
    with pytest.raises(UsageError, match=said):
        registry.register(replace(momentum, **{"name": "new", **change}))
    assert before == registry.RULES


VALUES: dict[str, Callable[[Tensor], Tensor]] = {"one": torch.ones_like, "decay": torch.neg}
"""Gates by activation, of numbers in (0, 1); the others are such."""


@pytest.mark.parametrize("name", registry.RULES)
@pytest.mark.parametrize("channel", [False, True])
def test_every_rule_is_its_own_reference(name: str, channel: bool) -> None:
    """Step, chunks and read against the naive reference, gates of all kinds; and padding leaves every state."""
    rule = registry.find(name)
    x = memory(9, channel=channel and (rule.decays_by_channel or not rule.decays), dv=4 if rule.square else 3)
    rows, heads, _, dk = x.k.shape
    made = torch.Generator().manual_seed(0)
    held = [torch.randn(rows, *s, generator=made).double() for s in rule.shapes(heads, dk, x.v.shape[3]).values()]
    learned = [
        torch.randn(each.shape(heads, dk, x.v.shape[3]), generator=made).double() for each in rule.learned.values()
    ]
    states = [*held, *learned]
    others = [n for n in rule.gates if n not in ("g", "beta")]
    wide = {n: (dk,) if rule.gates[n].wide("channel" if channel else "head") else () for n in others}
    drawn = {n: torch.rand(*x.beta.shape, *wide[n], generator=made).double() for n in others}
    gates = [VALUES.get(rule.gates[n].activation, torch.clone)(drawn[n]) for n in others]
    read: dict[str, Any] = {"rule": name, "scale": 0.5}
    assert worst(functional.delta_rule_read(x.q, states, **read), naive.delta_rule_read(x.q, states, **read)) < 1e-12
    if not rule.by_window:
        want = naive.delta_rule(*x.stream, states, gates, **read)
        for chunk in (1, 4, 64):
            got = functional.delta_rule(*x.stream, states, gates, **read, chunk=chunk)
            assert max(map(worst, got, want)) < 1e-12
    for passes in (1, 2, 5):
        how: dict[str, Any] = {"rule": name, "passes": passes, "written": False}
        got = functional.replay(*x.record, states, gates, **how)
        assert max(map(worst, got, naive.replay(*x.record, states, gates, **how))) < 1e-12
    still = {n: torch.full_like(drawn.get(n, x.beta), gate.at_padding) for n, gate in rule.gates.items()}
    pads = (x.q, x.k * 0, x.v, still.get("g", x.g), still.get("beta", x.beta), states, [still[n] for n in others])
    how = {"rule": name, "passes": 1, "written": False, "chunk": 1}
    assert all(map(torch.equal, functional.replay(*pads[1:], **how), held))
    assert max(map(worst, naive.replay(*pads[1:], **how), held)) <= (1e-14 if rule.by_window else 0)
    if not rule.by_window:
        assert all(map(torch.equal, functional.delta_rule(*pads, rule=name, scale=1.0, chunk=1)[1:], held))
    with pytest.raises(ValueError, match="gates in addition to g and beta"):
        functional.replay(*x.record, states, [*gates, x.beta], **how)
