"""Rule `ba2016` against what the paper's equations come to, in float64: attention with a recency weight, settling."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sleepc.memory.rules import ba2016
from sleepc.ops import functional
from tests.ops.cases import memory, worst

TOKENS = 19


def features(x: Tensor) -> Tensor:
    """The layer norm of PyTorch, without gain and bias, over the root of the width."""
    width = x.shape[-1]
    return torch.nn.functional.layer_norm(x, (width,), eps=1e-6 / width).relu() / math.sqrt(width)


def attended(q: Tensor, k: Tensor, v: Tensor, steps: int) -> Tensor:
    """Reads [B,H,T,d] without any matrix: A_t^T h = 0.5 sum over tau <= t of 0.95^(t - tau) (f(k_tau) . h) v_tau."""
    apart = torch.arange(q.shape[2])[:, None] - torch.arange(q.shape[2])[None]
    recent = torch.where(apart >= 0, 0.95 ** apart.clamp(min=0).double(), 0.0)

    def known(h: Tensor) -> Tensor:
        return 0.5 * (recent * (h @ features(k).mT)) @ v

    h = features(q)
    for _ in range(steps):
        h = features(q + known(h))
    return known(h)


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_it_is_attention_to_the_recent_past(chunk: int, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ba2016, "SETTLING", steps)
    x = memory(TOKENS, heads=2, dv=4)
    token, empty = torch.ones(2, 2, TOKENS).double(), torch.zeros(2, 2, 4, 4).double()
    out, state = functional.delta_rule(*x.stream, [empty], [token], rule="ba2016", scale=1.0, chunk=chunk)
    assert worst(out, attended(x.q, x.k, x.v, steps)) < 1e-12
    weights = 0.5 * 0.95 ** torch.arange(TOKENS - 1, -1, -1).double()
    assert worst(state, torch.einsum("t,bhtk,bhtv->bhkv", weights, features(x.k), x.v)) < 1e-12


def test_an_empty_memory_settles_where_it_begins() -> None:
    """Whatever the number of steps: what it reads is nothing."""
    x = memory(3, dv=4)
    out = functional.delta_rule_read(x.q, [torch.zeros(2, 2, 4, 4).double()], rule="ba2016", scale=1.0)
    assert not out.any()


def test_gradients_are_those_of_finite_differences() -> None:
    x = memory(6, rows=1, heads=1, memories=1, dk=5, dv=5)
    token = torch.ones(1, 1, 6).double()

    def reads(q: Tensor, k: Tensor, v: Tensor, state: Tensor) -> Tensor:
        return functional.delta_rule(q, k, v, x.g, x.beta, [state], [token], rule="ba2016", scale=1.0, chunk=4)[0]

    leaves = [each.clone().requires_grad_() for each in (x.q, x.k, x.v, x.state)]
    assert torch.autograd.gradcheck(reads, leaves)
