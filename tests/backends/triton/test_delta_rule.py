"""The kernels of the delta rule, in Triton's interpreter on the CPU, against the loop over tokens in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: pip install '.[triton]'")

from sleepc.backends.triton import launch
from sleepc.backends.triton.delta_rule import delta_rule, delta_rule_read, replay
from sleepc.backends.triton.launch import WrittenTokens
from sleepc.ops import functional, naive
from tests.ops.cases import RULES, Memory, memory, worst

every_rule = pytest.mark.parametrize("rule", RULES)
every_decay = pytest.mark.parametrize("channel", [False, True], ids=["head", "channel"])


def single(x: Memory, dtype: torch.dtype = torch.float32) -> Memory:
    """In the types of a model: the state, g and beta are float32."""
    return x.to(dtype, torch.float32)


def differences(x: Memory, rule: str, chunk: int = 16) -> tuple[float, float]:
    """How far what is read, and the state, are from the loop."""
    want = naive.delta_rule(*x.stream, [x.state], rule=rule, scale=0.5)
    got = delta_rule(*x.stream, [x.state], rule=rule, scale=0.5, chunk=chunk)
    assert [y.dtype for y in got] == [x.q.dtype, torch.float32]
    return worst(got[0], want[0]), worst(got[1], want[1])


@pytest.fixture
def no_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's form is not to be used."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("there is no kernel for this")

    for name in ("delta_rule", "delta_rule_read", "replay"):
        monkeypatch.setattr(functional, name, refuse)


pytestmark = pytest.mark.usefixtures("no_other_way", "memory_that_holds_anything")


@every_rule
@pytest.mark.parametrize(
    ("tokens", "chunk"), [(1, 16), (16, 16), (35, 16), (40, 32), (70, 64)], ids=lambda value: str(value)
)
def test_equals_the_loop(rule: str, tokens: int, chunk: int) -> None:
    """One token, whole chunks, and a last chunk that is not full; heads of 20 and 24."""
    x = single(memory(tokens, rows=1, heads=2, memories=2, dk=20, dv=24))
    assert max(differences(x, rule, chunk)) < 2e-6


@pytest.mark.parametrize("rule", ["gated", "gated_delta"])
@pytest.mark.parametrize(("tokens", "chunk"), [(1, 16), (35, 16), (40, 32)])
def test_decay_per_channel_equals_the_loop(rule: str, tokens: int, chunk: int) -> None:
    """Rows of 16 alone, with earlier ones, and the last ones, which are not full."""
    x = single(memory(tokens, rows=1, heads=2, memories=1, dk=20, dv=24, channel=True))
    assert max(differences(x, rule, chunk)) < 2e-6


@pytest.mark.parametrize(("dk", "dv"), [(16, 40), (80, 16), (200, 256)])
def test_head_sizes(dk: int, dv: int) -> None:
    """Blocks of columns, the last of which are not full, too."""
    x = single(memory(18, rows=1, heads=1, memories=1, dk=dk, dv=dv))
    assert max(differences(x, "gated_delta")) < 2e-6


@pytest.mark.parametrize("strength", [0.99, 1.0, 1.99])
def test_repeated_tokens(strength: float) -> None:
    """Equal keys and beta near 1: what an inverse by doubling is off by 1e10 with."""
    x = memory(64, rows=1, heads=1, memories=1, dk=16, repeated=True, decay=1e-3)
    x = single(replace(x, beta=torch.full_like(x.beta, strength)))
    assert max(differences(x, "gated_delta", 64)) < 1e-4


@pytest.mark.parametrize("decay", [1e-4, 20.0, 1000.0])
@pytest.mark.parametrize(("rule", "channel"), [("gated", False), ("gated_delta", False), ("gated_delta", True)])
def test_slow_and_strong_decay(rule: str, channel: bool, decay: float) -> None:
    """Differences of sums of g near -600 are off by 6e-5 in float32."""
    tokens = 38 if channel else 64
    x = single(memory(tokens, rows=1, heads=1, memories=1, dk=16, decay=decay, channel=channel))
    assert max(differences(x, rule, 64)) < 5e-5


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 5e-3), (torch.float16, 3e-3)])
@every_rule
def test_narrow_activations(rule: str, dtype: torch.dtype, bound: float) -> None:
    """float16 is multiplied as it is; bfloat16, which the interpreter cannot, in float32, and then rounded."""
    x = single(memory(40, rows=1, heads=2, memories=2, dk=16, dv=16), dtype)
    assert max(differences(x, rule)) < bound


@pytest.mark.parametrize("heads", [4, 6])
def test_queries_share_memories(heads: int) -> None:
    x = single(memory(18, rows=1, heads=heads, memories=2, dk=16, dv=16))
    assert max(differences(x, "gated_delta")) < 2e-6


@pytest.mark.parametrize("tokens", [1, 20])
@pytest.mark.parametrize(("queries", "keys", "channel"), [(1, 1, False), (2, 1, True), (1, 2, False)])
def test_memories_share_keys_and_queries(tokens: int, queries: int, keys: int, channel: bool) -> None:
    """Two memories with a value each, and fewer keys or queries than these."""
    x = single(memory(tokens, rows=2, heads=2, memories=2, dk=16, dv=16, channel=channel))
    q, k = x.q[:, :queries].contiguous(), x.k[:, :keys].contiguous()
    t = WrittenTokens(k, x.v, x.g, x.beta)
    it = launch.problem(t, chunk=16, corrects=True, decays=True)
    if tokens == 1:
        got, end = launch.step(q, t, x.state, 0.5, it)
    else:
        done = launch.advance(t, x.state, it)
        got, end = launch.answer(q, t, done, 0.5, it), done.end
    whole = replace(x, q=q.repeat_interleave(2 // queries, 1), k=k.repeat_interleave(2 // keys, 1))
    want = naive.delta_rule(*whole.stream, [x.state], rule="gated_delta", scale=0.5)
    assert worst(got, want[0]) < 2e-6
    assert worst(end, want[1]) < 2e-6


@every_decay
def test_ragged_rows(channel: bool) -> None:
    """A row that is padded ends in the state that it has alone; padding alone changes nothing, to the bit."""
    x = single(memory(40, rows=3, heads=1, memories=1, dk=16, dv=16, channel=channel))
    lengths = torch.tensor([40, 19, 0])
    real = (torch.arange(40) < lengths[:, None]).float()[:, None]
    q, k, v, g, beta = x.stream
    g = g * (real[..., None] if channel else real)
    out, end = delta_rule(q, k * real[..., None], v, g, beta * real, [x.state], rule="gated_delta", scale=1.0, chunk=16)
    short = x.map(lambda y: y[1:2]).tokens(slice(0, 19))
    want = naive.delta_rule(*short.stream, [short.state], rule="gated_delta", scale=1.0)
    assert worst(out[1:2, :, :19], want[0]) < 2e-6
    assert worst(end[1:2], want[1]) < 2e-6
    assert torch.equal(end[2], x.state[2])


@every_rule
@pytest.mark.parametrize("cut", [1, 20])
def test_two_calls_equal_one(rule: str, cut: int) -> None:
    x = single(memory(33, rows=1, heads=2, memories=2, dk=16, dv=16))
    how: dict[str, Any] = {"rule": rule, "scale": 1.0, "chunk": 16}
    whole = delta_rule(*x.stream, [x.state], **how)
    a, state = delta_rule(*x.tokens(slice(0, cut)).stream, [x.state], **how)
    b, state = delta_rule(*x.tokens(slice(cut, None)).stream, [state], **how)
    assert worst(torch.cat([a, b], 2), whole[0]) < 2e-6
    assert worst(state, whole[1]) < 2e-6


def test_what_lies_otherwise_in_memory() -> None:
    """[B, T, H, d] as the layers make it."""
    x = single(memory(18, rows=1, heads=2, memories=2, dk=16, dv=16))
    want = delta_rule(*x.stream, [x.state], rule="gated_delta", scale=1.0, chunk=16)
    turned = x.map(lambda y: y.transpose(1, 2).contiguous().transpose(1, 2))
    got = delta_rule(*turned.stream, [turned.state], rule="gated_delta", scale=1.0, chunk=16)
    assert all(map(torch.equal, got, want))


@every_decay
@pytest.mark.parametrize(("passes", "written"), [(1, False), (1, True), (2, False), (4, True)])
@pytest.mark.parametrize("rule", ["linear", "gated_delta"])
def test_replay(rule: str, passes: int, written: bool, channel: bool) -> None:
    """The first pass with decay, the others without, over chunks of which the last is not full."""
    x = single(memory(20, rows=1, heads=2, memories=2, dk=16, dv=20, channel=channel))
    (got,) = replay(*x.record, [x.state], rule=rule, passes=passes, written=written, chunk=16)
    (want,) = naive.replay(*x.record, [x.state], rule=rule, passes=passes, written=written)
    assert got.data_ptr() != x.state.data_ptr()
    assert worst(got, want) < 2e-6


def test_a_narrow_program_multiplies_what_is_narrow() -> None:
    """Its graphs hand on float32: results are those of narrow queries, keys and values, and are float32."""
    x, low = single(memory(20, rows=1, heads=2, memories=2, dk=16, dv=16)), torch.bfloat16
    y = x.to(low, torch.float32)
    how: dict[str, Any] = {"rule": "gated_delta", "scale": 1.0}
    told, plain = delta_rule(*x.stream, [x.state], **how, low=low), delta_rule(*y.stream, [y.state], **how)
    assert [z.dtype for z in told] == [torch.float32, torch.float32]
    assert all(torch.equal(a.to(b.dtype), b) for a, b in zip(told, plain, strict=True))
    assert worst(told[0], naive.delta_rule(*x.stream, [x.state], **how)[0]) > 1e-4
    asked = delta_rule_read(x.q, [x.state], **how, low=low)
    assert torch.equal(asked.to(low), delta_rule_read(y.q, [x.state], **how))
    again: dict[str, Any] = {"rule": "gated_delta", "passes": 2, "written": False}
    (slept,) = replay(*x.record, [x.state], **again, low=low)
    assert torch.equal(slept, replay(*y.record, [x.state], **again)[0])


def test_one_token_of_a_narrow_program_is_not_rounded() -> None:
    x = single(memory(1, rows=1, heads=1, memories=1, dk=16, dv=16))
    how: dict[str, Any] = {"rule": "gated_delta", "scale": 1.0}
    narrow, wide = (delta_rule(*x.stream, [x.state], **how, low=low) for low in (torch.bfloat16, torch.float32))
    assert all(map(torch.equal, narrow, wide))
    reads = [delta_rule_read(x.q, [x.state], **how, low=low) for low in (torch.bfloat16, torch.float32)]
    assert torch.equal(*reads)


def test_a_program_in_float16_reads_what_float16_does_not_hold() -> None:
    """A memory that only adds, of alike keys and large values: kernels would store states and results in float16."""
    x = single(memory(40, rows=1, heads=1, memories=1, dk=16, dv=16, repeated=True))
    x = replace(x, q=x.k, v=torch.full_like(x.v, 8000.0), beta=torch.ones_like(x.beta))
    how: dict[str, Any] = {"rule": "linear", "scale": 1.0}
    got = delta_rule(*x.stream, [x.state], **how, chunk=16, low=torch.float16)
    want = naive.delta_rule(*x.stream, [x.state], **how)
    assert want[0].max() > 1e5
    assert [worst(a, b) < 2e-6 for a, b in zip(got, want, strict=True)] == [True, True]
    asked = delta_rule_read(x.q, [got[1]], **how, low=torch.float16)
    assert worst(asked, naive.delta_rule_read(x.q, [want[1]], **how)) < 2e-6


def test_replay_of_repeated_tokens() -> None:
    x = memory(64, rows=1, heads=1, memories=1, dk=16, repeated=True, decay=1e-3)
    x = single(replace(x, beta=torch.full_like(x.beta, 1.99)))
    (got,) = replay(*x.record, [x.state], rule="gated_delta", passes=4, written=False)
    (want,) = naive.replay(*x.record, [x.state], rule="gated_delta", passes=4, written=False)
    assert worst(got, want) < 1e-4


@pytest.mark.parametrize(("tokens", "heads", "dtype"), [(1, 2, torch.float32), (21, 4, torch.bfloat16)])
def test_read_alone(tokens: int, heads: int, dtype: torch.dtype) -> None:
    x = single(memory(tokens, heads=heads, memories=2, dk=20, dv=40), dtype)
    got = delta_rule_read(x.q, [x.state], rule="delta", scale=0.5)
    assert got.dtype == dtype
    want = naive.delta_rule_read(x.q, [x.state], rule="delta", scale=0.5)
    assert worst(got, want) < (2e-6 if dtype == torch.float32 else 5e-3)
