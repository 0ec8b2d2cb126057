"""Rule `ba2016` against what the paper's equations come to, in float64: attention with a recency weight, settling; and
in the recurrent network that the paper makes of it.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sleepc.memory.rules import ba2016
from sleepc.ops import functional
from tests.ops.cases import memory, normal, worst

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


def recurrent(x: Tensor, w: Tensor, steps: int) -> Tensor:
    """The paper's network, by the rule: hidden states [B,T,H] of drives W h + x, x [B,T,H], settled `steps` times on
    what the rule's reads find (it settles one time less: the last is here).
    """
    h, state, seen = x.new_zeros(len(x), x.shape[2]), [x.new_zeros(len(x), 1, x.shape[2], x.shape[2])], []
    token = x.new_ones(len(x), 1, 1)
    for t in range(x.shape[1]):
        drive = h @ w.T + x[:, t]
        h = features(drive)
        if steps:
            known = functional.delta_rule_read(drive[:, None, None], state, rule="ba2016", scale=1.0)
            h = features(drive + known[:, 0, 0])
        written = (h[:, None, None], h[:, None, None], 0 * token, 0 * token, state, [token])
        state = functional.replay(*written, rule="ba2016", passes=1, written=False)
        seen.append(h)
    return torch.stack(seen, 1)


def by_attention(x: Tensor, w: Tensor, steps: int, rate: float = 0.5) -> Tensor:
    """The same without a matrix: h_(s+1) = f(W h + x + rate sum over tau of 0.95^(t - tau) h_tau (f(h_tau) . h_s))."""
    past: list[Tensor] = []
    h = x.new_zeros(len(x), x.shape[2])
    for t in range(x.shape[1]):
        drive = h @ w.T + x[:, t]
        h = features(drive)
        for _ in range(steps):
            known = [
                0.95 ** (t - 1 - i) * rate * (features(e) * h).sum(-1, keepdim=True) * e for i, e in enumerate(past)
            ]
            h = features(drive + sum(known, torch.zeros_like(h)))
        past.append(h)
    return torch.stack(past, 1)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_in_a_network_it_is_the_papers(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without steps a plain recurrent network with a layer norm; without a rate the same, whatever the steps are."""
    monkeypatch.setattr(ba2016, "SETTLING", max(steps - 1, 0))
    x, w = normal(2, 7, 5), 0.5 * normal(5, 5, seed=1)
    assert worst(recurrent(x, w, steps), by_attention(x, w, steps)) < 1e-12
    plain = by_attention(x, w, 0)
    assert (worst(recurrent(x, w, steps), plain) > 1e-3) == (steps > 0)
    monkeypatch.setattr(ba2016, "RATE", 0.0)
    assert worst(recurrent(x, w, steps), plain) < 1e-12


def test_the_networks_weights_have_gradients_of_finite_differences() -> None:
    x, w = normal(1, 6, 5), 0.5 * normal(5, 5, seed=1)
    assert torch.autograd.gradcheck(lambda each: recurrent(x, each, 1), [w.requires_grad_()])
