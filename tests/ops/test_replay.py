from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sleepc.ops import functional, naive
from tests.ops.cases import CORRECTING, RULES, Memory, memory, small, worst


@small
@given(
    rule=st.sampled_from(CORRECTING),
    channel=st.booleans(),
    repeated=st.booleans(),
    written=st.booleans(),
    passes=st.integers(1, 9),
    tokens=st.integers(0, 12),
    chunk=st.integers(1, 16),
)
def test_replay_equals_the_literal_loop(
    rule: str,
    channel: bool,
    repeated: bool,
    written: bool,
    passes: int,
    tokens: int,
    chunk: int,
) -> None:
    """The affine form (from four passes on) included; with repeated tokens too."""
    x = memory(tokens, heads=2, channel=channel, repeated=repeated, seed=passes)
    how: dict[str, Any] = {"rule": rule, "passes": passes, "written": written}
    (want,) = naive.replay(*x.record, [x.state], **how)
    (got,) = functional.replay(*x.record, [x.state], chunk=chunk, **how)
    assert worst(got, want) < 1e-11


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("passes", [1, 3, 4, 8])
def test_written_is_what_wake_did(rule: str, passes: int) -> None:
    """Writing in wake and replaying the rest equals replaying everything."""
    x = memory(20)
    _, awake = functional.delta_rule(*x.stream, [x.state], rule=rule, scale=1.0)
    (a,) = functional.replay(*x.record, [awake], rule=rule, passes=passes, written=True)
    (b,) = functional.replay(*x.record, [x.state], rule=rule, passes=passes, written=False)
    (want,) = naive.replay(*x.record, [x.state], rule=rule, passes=passes, written=False)
    assert worst(a, want) < 1e-11
    assert worst(b, want) < 1e-11


@pytest.mark.parametrize("passes", [2, 6])
def test_narrow_records(passes: int) -> None:
    x = memory(32, strength=0.5).to(torch.bfloat16, torch.float32)
    how: dict[str, Any] = {"rule": "gated_delta", "passes": passes, "written": False}
    (want,) = naive.replay(*x.record, [x.state], **how)
    (got,) = functional.replay(*x.record, [x.state], **how)
    assert got.dtype == torch.float32
    assert worst(got, want) < 1e-5


def test_nothing_left_to_do_gives_a_copy() -> None:
    x = memory(5)
    (got,) = functional.replay(*x.record, [x.state], rule="delta", passes=1, written=True)
    assert torch.equal(got, x.state)
    assert got.data_ptr() != x.state.data_ptr()


@pytest.mark.parametrize("passes", [2, 7])
def test_padding_writes_nothing(passes: int) -> None:
    x = memory(6)
    k, v, g, beta = x.record
    real = torch.tensor([1.0, 1, 1, 1, 0, 0]).double()
    pads = (k * real[:, None], v, g * real, beta * real)
    short = x.tokens(slice(0, 4)).record
    how: dict[str, Any] = {"rule": "gated_delta", "passes": passes, "written": False}
    (a,) = functional.replay(*pads, [x.state], **how)
    (b,) = functional.replay(*short, [x.state], **how)
    assert worst(a, b) < 1e-14


def _fixed_point(x: Memory, state: Tensor) -> Tensor:
    """Where passes from `state` end: the solution of S = M S + B that keeps what no key touches."""
    still, eye = torch.zeros_like(x.beta), torch.eye(x.k.shape[3]).double()
    start = eye.expand(*state.shape[:2], -1, -1)
    nothing = torch.zeros_like(x.k)
    how: dict[str, Any] = {"rule": "delta", "passes": 1, "written": False}
    (m,) = naive.replay(x.k, nothing, still, x.beta, [start], **how)
    empty = torch.zeros_like(state)
    (b,) = naive.replay(x.k, x.v, still, x.beta, [empty], **how)
    back: Tensor = torch.linalg.pinv(eye - m, rtol=1e-10)
    return state + back @ (b - (eye - m) @ state)


@pytest.mark.parametrize("strength", [0.1, 1.0, 1.9])
@pytest.mark.parametrize("tokens", [2, 4, 30])
@pytest.mark.parametrize("repeated", [False, True])
def test_distance_to_the_fixed_point_never_grows(strength: float, tokens: int, repeated: bool) -> None:
    x = memory(tokens, strength=strength, repeated=repeated, seed=tokens)
    end = _fixed_point(x, x.state)
    still = torch.zeros_like(x.g)
    state, before = x.state, (x.state - end).norm(dim=(2, 3))
    for _ in range(50):
        (state,) = functional.replay(x.k, x.v, still, x.beta, [state], rule="gated_delta", passes=1, written=False)
        after = (state - end).norm(dim=(2, 3))
        assert (after <= before + 1e-10).all()
        before = after
    far = functional.replay(x.k, x.v, still, x.beta, [state], rule="delta", passes=4000, written=True)
    assert (far[0] - end).norm() < (state - end).norm() + 1e-9


def test_refusals() -> None:
    x = memory(3)
    with pytest.raises(ValueError, match="at least one pass, not 0"):
        functional.replay(*x.record, [x.state], rule="delta", passes=0, written=False)
