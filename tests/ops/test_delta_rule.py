from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sleepc.errors import UsageError
from sleepc.ops import functional, naive
from tests.ops.cases import CORRECTING, RULES, few, memory, normal, small, unit, worst

every_rule = pytest.mark.parametrize("rule", RULES)
every_decay = pytest.mark.parametrize("channel", [False, True], ids=["head", "channel"])


@small
@given(
    rule=st.sampled_from(RULES),
    channel=st.booleans(),
    repeated=st.booleans(),
    groups=st.sampled_from([(1, 1), (2, 1), (3, 3), (4, 2)]),
    tokens=st.integers(0, 40),
    chunk=st.integers(1, 64),
    seed=st.integers(0, 1000),
)
def test_chunks_equal_the_token_loop(
    rule: str,
    channel: bool,
    repeated: bool,
    groups: tuple[int, int],
    tokens: int,
    chunk: int,
    seed: int,
) -> None:
    heads, memories = groups
    x = memory(tokens, heads=heads, memories=memories, channel=channel, repeated=repeated, seed=seed)
    want = naive.delta_rule(*x.stream, [x.state], rule=rule, scale=0.7)
    got = functional.delta_rule(*x.stream, [x.state], rule=rule, scale=0.7, chunk=chunk)
    assert [y.dtype for y in got] == [torch.float64, torch.float64]
    assert max(map(worst, got, want)) < 1e-12


@every_rule
@every_decay
def test_every_chunk_size(rule: str, channel: bool) -> None:
    x = memory(67, rows=1, heads=2, memories=1, channel=channel)
    want = naive.delta_rule(*x.stream, [x.state], rule=rule, scale=1.0)
    for chunk in range(1, 70):
        got = functional.delta_rule(*x.stream, [x.state], rule=rule, scale=1.0, chunk=chunk)
        assert max(map(worst, got, want)) < 1e-12, chunk


@every_rule
@every_decay
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 1e-3)])
def test_narrow_activations(rule: str, channel: bool, dtype: torch.dtype, bound: float) -> None:
    """The state stays float32 and nearly exact; only what is read is rounded to q's dtype."""
    x = memory(50, channel=channel).to(dtype, torch.float32)
    want = naive.delta_rule(*x.stream, [x.state], rule=rule, scale=1.0)
    got = functional.delta_rule(*x.stream, [x.state], rule=rule, scale=1.0, chunk=32)
    assert [y.dtype for y in got] == [dtype, torch.float32]
    assert worst(got[0], want[0]) < bound
    assert worst(got[1], want[1]) < 1e-5


@every_rule
@every_decay
@pytest.mark.parametrize("cut", [0, 1, 20, 33])
def test_two_calls_equal_one(rule: str, channel: bool, cut: int) -> None:
    x = memory(33, channel=channel)
    whole = functional.delta_rule(*x.stream, [x.state], rule=rule, scale=1.0, chunk=16)
    first, second = x.tokens(slice(0, cut)), x.tokens(slice(cut, None))
    a, state = functional.delta_rule(*first.stream, [x.state], rule=rule, scale=1.0, chunk=16)
    b, state = functional.delta_rule(*second.stream, [state], rule=rule, scale=1.0, chunk=16)
    assert worst(torch.cat([a, b], 2), whole[0]) < 1e-12
    assert worst(state, whole[1]) < 1e-12


@every_rule
@every_decay
@pytest.mark.parametrize("tokens", [1, 5, 64, 70])
def test_padding_is_the_identity_bit_for_bit(rule: str, channel: bool, tokens: int) -> None:
    x = memory(tokens, channel=channel)
    q, k, v, g, beta = x.stream
    pads = (q, k * 0, v, g * 0, beta * 0)
    _, state = functional.delta_rule(*pads, [x.state], rule=rule, scale=1.0)
    assert torch.equal(state, x.state)


@pytest.mark.parametrize("rule", CORRECTING)
def test_orthonormal_keys_read_back(rule: str) -> None:
    k = torch.linalg.qr(normal(2, 2, 8, 8)).Q
    v, state = normal(2, 2, 8, 8, seed=1), normal(2, 2, 8, 8, seed=2)
    still, full = torch.zeros(2, 2, 8).double(), torch.ones(2, 2, 8).double()
    _, state = functional.delta_rule(k, k, v, still, full, [state], rule=rule, scale=1.0)
    read = functional.delta_rule_read(k, [state], rule=rule, scale=1.0)
    assert worst(read, v) < 1e-12


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_linear_adds_and_delta_replaces(rule: str, repeated: bool) -> None:
    """Written over and over by one key with beta = 1, a correcting memory holds the last value."""
    x = memory(40, repeated=repeated)
    still, full = torch.zeros_like(x.beta), torch.ones_like(x.beta)
    empty = torch.zeros_like(x.state)
    _, state = functional.delta_rule(x.q, x.k, x.v, still, full, [empty], rule=rule, scale=1.0)
    read = functional.delta_rule_read(x.k[:, :, -1:], [state], rule=rule, scale=1.0)
    assert (worst(read[:, :, 0], x.v[:, :, -1]) < 1e-12) == (rule in CORRECTING)
    if repeated and rule not in CORRECTING:
        assert worst(read[:, :, 0], x.v.sum(2)) < 1e-12


@pytest.mark.parametrize("strength", [0.99, 1.0, 1.99])
@every_decay
def test_repeated_tokens_in_float32(strength: float, channel: bool) -> None:
    """Equal keys and beta near 1: where inverting I + A by doubling is off by 1e10."""
    x = memory(128, dk=16, repeated=True, channel=channel, decay=1e-3)
    x = replace(x, beta=torch.full_like(x.beta, strength))
    want = naive.delta_rule(*x.stream, [x.state], rule="gated_delta", scale=1.0)
    y = x.to(torch.float32, torch.float32)
    got = functional.delta_rule(*y.stream, [y.state], rule="gated_delta", scale=1.0, chunk=64)
    assert max(map(worst, got, want)) < 1e-4


@pytest.mark.parametrize("channel", [False, True])
@pytest.mark.parametrize("decay", [20.0, 1000.0])
def test_strong_decay_does_not_overflow(channel: bool, decay: float) -> None:
    """Sums of g near -600 carry an error of 6e-5 in float32, and so do the differences of them."""
    x = memory(64, channel=channel, decay=decay)
    want = naive.delta_rule(*x.stream, [x.state], rule="gated_delta", scale=1.0)
    y = x.to(torch.float32, torch.float32)
    got = functional.delta_rule(*y.stream, [y.state], rule="gated_delta", scale=1.0)
    assert max(map(worst, got, want)) < 5e-5


@every_decay
def test_strong_decay_has_finite_gradients(channel: bool) -> None:
    x = memory(40, channel=channel, decay=1000.0).to(torch.float32, torch.float32)
    x = x.map(lambda y: y.requires_grad_())
    out, state = functional.delta_rule(*x.stream, [x.state], rule="gated_delta", scale=1.0)
    grads = torch.autograd.grad(out.square().sum() + state.square().sum(), [*x.stream, x.state])
    assert all(y.isfinite().all() for y in grads)


@pytest.mark.parametrize("rule", ["linear", "delta"])
def test_rules_without_decay_do_not_look_at_g(rule: str) -> None:
    x = memory(9)
    q, k, v, g, beta = x.stream
    got = functional.delta_rule(q, k, v, g, beta, [x.state], rule=rule, scale=1.0)
    want = functional.delta_rule(q, k, v, g * 0, beta, [x.state], rule=rule, scale=1.0)
    assert all(map(torch.equal, got, want))


@few
@given(rule=st.sampled_from(RULES), tokens=st.integers(0, 5), heads=st.sampled_from([2, 4, 6]))
def test_read_equals_the_loop(rule: str, tokens: int, heads: int) -> None:
    x = memory(tokens, heads=heads)
    want = naive.delta_rule_read(x.q, [x.state], rule=rule, scale=0.3)
    assert worst(functional.delta_rule_read(x.q, [x.state], rule=rule, scale=0.3), want) < 1e-12
    narrow = functional.delta_rule_read(x.q.bfloat16(), [x.state.float()], rule=rule, scale=0.3)
    assert narrow.dtype == torch.bfloat16
    assert worst(narrow, want) < 0.03


def test_rows_are_independent() -> None:
    x = memory(20, rows=3)
    order = torch.tensor([2, 0, 1])
    y = x.map(lambda z: z[order])
    a = functional.delta_rule(*x.stream, [x.state], rule="delta", scale=1.0)
    b = functional.delta_rule(*y.stream, [y.state], rule="delta", scale=1.0)
    assert all(worst(y, z[order]) < 1e-14 for y, z in zip(b, a, strict=True))


def test_keys_need_not_be_unit() -> None:
    x = memory(12)
    k = 0.5 * x.k + 0.1
    args = (x.q, k, x.v, x.g, x.beta)
    want = naive.delta_rule(*args, [x.state], rule="gated_delta", scale=1.0)
    got = functional.delta_rule(*args, [x.state], rule="gated_delta", scale=1.0)
    assert max(map(worst, got, want)) < 1e-12
    assert worst(unit(k), x.k) > 1e-3


def test_refusals() -> None:
    x = memory(3, heads=3)
    with pytest.raises(ValueError, match="3 query heads are not a multiple of 2 KV heads"):
        functional.delta_rule(*x.stream, [x.state], rule="delta", scale=1.0)
    y = memory(3)
    with pytest.raises(UsageError, match="no rule is named 'delat'"):
        functional.delta_rule(*y.stream, [y.state], rule="delat", scale=1.0)
    with pytest.raises(ValueError, match="at least one token, not 0"):
        functional.delta_rule(*y.stream, [y.state], rule="delta", scale=1.0, chunk=0)
