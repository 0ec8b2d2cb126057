"""Gradients by kernels, in Triton's interpreter on the CPU, against PyTorch's of the same in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed: pip install '.[triton]'")

from sleepc.backends.triton import library
from sleepc.backends.triton.delta_rule import delta_rule, delta_rule_read, replay
from sleepc.ops import functional
from tests.ops.cases import RULES, Memory, memory, normal, worst

pytestmark = pytest.mark.usefixtures("memory_that_holds_anything")

Inputs = tuple[Tensor, ...]


def gradients(function: Callable[..., Any], inputs: Inputs) -> Inputs:
    """Of a sum of what is read and of the state, each number with a weight of its own; zeros for what is not used."""
    given = [x.clone().requires_grad_() for x in inputs]
    results = function(*given)
    total = sum((y * normal(*y.shape, seed=9 + i, dtype=y.dtype)).sum() for i, y in enumerate(results))
    assert isinstance(total, Tensor)
    return torch.autograd.grad(total, given, allow_unused=True, materialize_grads=True)


def differences(x: Memory, rule: str, dtype: torch.dtype = torch.float32, chunk: int = 16) -> list[float]:
    """How far the gradients of q, k, v, g, beta and the state are from PyTorch's."""

    def run(kernel: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given: kernel(*given[:5], [given[5]], rule=rule, scale=0.5, chunk=chunk)

    y = x.to(dtype, torch.float32)
    want = gradients(run(functional.delta_rule), (*y.map(Tensor.double).stream, y.state.double()))
    got = gradients(run(delta_rule), (*y.stream, y.state))
    assert [z.dtype for z in got] == [z.dtype for z in (*y.stream, y.state)]
    return list(map(worst, got, want))


@pytest.fixture(autouse=True)
def no_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, PyTorch's form is not to be used."""

    def refusing(plain: Callable[..., Any]) -> Callable[..., Any]:
        def refuse(first: Tensor, *rest: Any, **options: Any) -> Any:
            assert first.dtype == torch.float64, "there is no kernel for this"
            return plain(first, *rest, **options)

        return refuse

    for name in ("delta_rule", "replay"):
        monkeypatch.setattr(functional, name, refusing(getattr(functional, name)))


@pytest.mark.parametrize(("tokens", "rule"), [(1, "gated_delta"), *((20, rule) for rule in RULES)])
def test_gradients_are_those_of_pytorch(tokens: int, rule: str) -> None:
    """One token, and a last chunk that is not full; heads of 20 and 24; two queries for each memory."""
    x = memory(tokens, rows=2, heads=2, memories=1, dk=20, dv=24)
    assert max(differences(x, rule)) < 3e-6


@pytest.mark.parametrize(("rule", "heads", "dk"), [("gated_delta", 2, 20), ("gated", 1, 16)])
def test_decay_per_channel(rule: str, heads: int, dk: int) -> None:
    """Rows of 16 that look back on others, and a last one that is not full; a chunk that is whole, and one that is
    not; two queries for each memory, or one.
    """
    x = memory(40, rows=1, heads=heads, memories=1, dk=dk, dv=24, channel=True)
    assert max(differences(x, rule, chunk=32)) < 3e-6


@pytest.mark.parametrize("decay", [1e-4, 1000.0])
def test_slow_and_strong_decay_per_channel(decay: float) -> None:
    x = memory(35, rows=1, heads=1, memories=1, dk=16, decay=decay, channel=True)
    assert max(differences(x, "gated_delta", chunk=64)) < 5e-5


@pytest.mark.parametrize(
    ("rule", "channel", "passes", "written"),
    [
        ("gated_delta", False, 3, False),
        ("gated_delta", True, 2, False),
        ("gated_delta", True, 3, True),
        ("delta", False, 2, False),
        ("gated", False, 1, False),
        ("gated", False, 1, True),
    ],
)
def test_replay(rule: str, channel: bool, passes: int, written: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first pass with decay, the others without; no pass at all leaves the state, and is PyTorch's."""
    if written and passes == 1:
        monkeypatch.undo()
    x = memory(20, rows=1, heads=2, memories=2, dk=20, dv=16, channel=channel)

    def run(kernel: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *t: kernel(*t[:4], [t[4]], rule=rule, passes=passes, written=written, chunk=16)

    want = gradients(run(functional.replay), (*x.record, x.state))
    got = gradients(run(replay), tuple(y.float() for y in (*x.record, x.state)))
    assert max(map(worst, got, want)) < 3e-6


def test_the_operators_are_what_they_say() -> None:
    """To tracing, to autograd and to torch.compile, as PyTorch checks them."""
    x = memory(2, rows=1, heads=1, memories=1, dk=16, dv=16, channel=True).to(torch.float32, torch.float32)
    q, k, v, g, beta, state = (y.requires_grad_() for y in (*x.stream, x.state))
    torch.library.opcheck(library.delta_rule, (q, k, v, g, beta, state, 0.5, True, True, 16))
    torch.library.opcheck(library.replay, (k, v, g, beta, state, 1, 1, True, True, 16))


def test_longer_chunks() -> None:
    assert max(differences(memory(40, rows=1, heads=1, memories=1, dk=16, dv=72), "gated_delta", chunk=32)) < 3e-6


def test_repeated_tokens() -> None:
    """Equal keys and beta near 2; gradients are as large as the number of tokens."""
    x = memory(64, rows=1, heads=1, memories=1, dk=16, repeated=True, decay=1e-3)
    x = replace(x, beta=torch.full_like(x.beta, 1.99))
    assert max(differences(x, "gated_delta", chunk=64)) < 1e-4


@pytest.mark.parametrize("decay", [1e-4, 1000.0])
def test_slow_and_strong_decay(decay: float) -> None:
    x = memory(40, rows=1, heads=1, memories=1, dk=16, decay=decay)
    assert max(differences(x, "gated_delta", chunk=64)) < 5e-5


def test_ragged_rows() -> None:
    """Padding has no gradient, and changes none."""
    x = memory(20, rows=1, heads=1, memories=1, dk=16, dv=16).to(torch.float32, torch.float32)
    real = (torch.arange(20) < 13).float()

    def padded(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> Any:
        given = (q, k * real[:, None], v, g * real, beta * real)
        out, end = delta_rule(*given, [state], rule="gated_delta", scale=0.5, chunk=16)
        return out[:, :, :13], end

    def short(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> Any:
        q, k, v, g, beta = (y[:, :, :13] for y in (q, k, v, g, beta))
        return functional.delta_rule(q, k, v, g, beta, [state], rule="gated_delta", scale=0.5)

    want = gradients(short, (*x.map(Tensor.double).stream, x.state.double()))
    for got, known in zip(gradients(padded, (*x.stream, x.state)), want, strict=True):
        assert worst(got, known) < 3e-6


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 8e-3), (torch.float16, 3e-3)])
def test_narrow_activations(dtype: torch.dtype, bound: float) -> None:
    x = memory(20, rows=1, heads=1, memories=1, dk=16, dv=16)
    assert max(differences(x, "gated_delta", dtype)) < bound


def test_memories_share_keys_and_queries() -> None:
    """Two memories with a value each, and one key and query."""
    x = memory(18, rows=1, heads=1, memories=1, dk=16, dv=16)
    y = memory(18, rows=1, heads=2, memories=2, dk=16, dv=16, seed=7)
    inputs = (x.q, x.k, y.v, y.g, y.beta, y.state)

    def shared(*given: Tensor) -> Any:
        return library.delta_rule(*given, 0.5, True, True, 16)

    def repeated(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> Any:
        q, k = q.expand(-1, 2, -1, -1), k.expand(-1, 2, -1, -1)
        return functional.delta_rule(q, k, v, g, beta, [state], rule="gated_delta", scale=0.5)

    got, want = gradients(shared, tuple(z.float() for z in inputs)), gradients(repeated, inputs)
    assert max(map(worst, got, want)) < 3e-6


def test_reads_alone_are_products_of_pytorch() -> None:
    x = memory(6, dk=16, dv=16).to(torch.float32, torch.float32).map(lambda y: y.requires_grad_())
    read = delta_rule_read(x.q, [x.state], rule="gated_delta", scale=0.5)
    (got,) = torch.autograd.grad(read.sum(), [x.state])
    want = 0.5 * x.q.sum(2).view(2, 2, 2, 16).sum(2)[..., None].expand_as(x.state)
    assert worst(got, want.detach()) < 2e-6
