"""The rules with a matrix as special cases of one step, S' = T S + k (g v)^T (Irie, Gershman, arXiv 2508.08435), T and
g written out as that table has them; attention without softmax; and what erasing more than everything can compute.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sleepc.ops import functional
from tests.ops.cases import Memory, memory, uniform, worst

TOKENS = 17


def general(x: Memory, transition: Tensor, gain: Tensor) -> Tensor:
    """S [B,H,dk,dv] after all tokens of transitions [B,H,T,dk,dk] and gains [B,H,T,dv]."""
    state = x.state
    for t in range(x.k.shape[2]):
        written = x.k[:, :, t, :, None] * (gain[:, :, t] * x.v[:, :, t])[:, :, None]
        state = transition[:, :, t] @ state + written
    return state


def diagonal(g: Tensor, width: int) -> Tensor:
    """Diag(e^g) [B,H,T,dk,dk] of g [B,H,T] or [B,H,T,dk]."""
    each = g if g.dim() == 4 else g[..., None].expand(*g.shape, width)
    return torch.diag_embed(each.exp())


def case(rule: str, x: Memory) -> tuple[Tensor, Tensor]:
    """T and g of a rule, by the table."""
    eye, beta = torch.eye(x.k.shape[3]).double(), x.beta[..., None]
    erase = eye - beta[..., None] * x.k[..., None] * x.k[..., None, :]
    decay, gain = diagonal(x.g, x.k.shape[3]), beta.expand_as(x.v)
    none = eye.expand_as(erase)
    return {"linear": none, "gated": decay, "delta": erase, "gated_delta": erase @ decay}[rule], gain


@pytest.mark.parametrize("rule", ["linear", "gated", "delta", "gated_delta"])
@pytest.mark.parametrize("channel", [False, True], ids=["head", "channel"])
def test_rules_are_cases_of_the_general_step(rule: str, channel: bool) -> None:
    """Decay per channel: GLA and KDA; per head: Mamba-2's and Gated DeltaNet's."""
    x = memory(TOKENS, channel=channel)
    state = functional.delta_rule(*x.stream, [x.state], rule=rule, scale=1.0)[1]
    assert worst(state, general(x, *case(rule, x))) < 1e-12


def test_titans_without_momentum_decays_what_it_has_not_erased() -> None:
    """T = (1 - alpha) I - 2 theta k k^T, g = 2 theta: the error is that of a memory that has not decayed."""
    x = memory(TOKENS)
    transition = diagonal(x.g, 4) - x.beta[..., None, None] * x.k[..., None] * x.k[..., None, :]
    gates, state = [torch.zeros_like(x.beta), torch.ones_like(x.beta)], [x.state, torch.zeros_like(x.state)]
    found = functional.delta_rule(*x.stream, state, gates, rule="titans", scale=1.0)[1]
    assert worst(found, general(x, transition, x.beta[..., None].expand_as(x.v))) < 1e-12


@pytest.mark.parametrize(("gated", "plain"), [("gated", "linear"), ("gated_delta", "delta")])
def test_without_decay_gated_rules_are_the_others(gated: str, plain: str) -> None:
    x = memory(TOKENS)
    still = torch.zeros_like(x.g)
    found, wanted = (
        functional.delta_rule(x.q, x.k, x.v, still, x.beta, [x.state], rule=r, scale=1.0) for r in (gated, plain)
    )
    assert max(map(worst, found, wanted)) < 1e-12


def test_one_decay_for_all_channels_is_one_per_head() -> None:
    """KDA with a·1 is Gated DeltaNet; so is Gated DeltaNet-2 with b = w = beta·1: T = (I - k (b k)^T) Diag(a)."""
    x = memory(TOKENS)
    wide = x.g[..., None].expand_as(x.k)
    found = functional.delta_rule(x.q, x.k, x.v, wide, x.beta, [x.state], rule="gated_delta", scale=1.0)
    wanted = functional.delta_rule(*x.stream, [x.state], rule="gated_delta", scale=1.0)
    assert max(map(worst, found, wanted)) < 1e-12
    both = x.beta[..., None] * torch.ones_like(x.k)
    erase = torch.eye(4).double() - x.k[..., None] * (both * x.k)[..., None, :]
    assert worst(general(x, erase @ diagonal(wide, 4), both[..., :3]), wanted[1]) < 1e-12


def test_sums_are_attention_without_softmax() -> None:
    """From an empty memory with beta = 1: tril(Q K^T) V."""
    x = memory(TOKENS, heads=2)
    empty, full = torch.zeros_like(x.state), torch.ones_like(x.beta)
    out = functional.delta_rule(x.q, x.k, x.v, x.g, full, [empty], rule="linear", scale=1.0)[0]
    assert worst(out, (x.q @ x.k.mT).tril() @ x.v) < 1e-12


def test_parity_needs_a_strength_of_two() -> None:
    """A memory of one number, keys 1, values 0: S' = (1 - beta) S. It counts ones if they erase twice what is there,
    and its sign never changes with a strength of at most 1.
    """
    bits = uniform(1, 1, 40) < 0.5
    one, none = torch.ones(1, 1, 40, 1).double(), torch.zeros(1, 1, 40).double()

    def reads(strength: Tensor) -> Tensor:
        given = (one, one, 0 * one, none, strength * bits, [torch.ones(1, 1, 1, 1).double()])
        return functional.delta_rule(*given, rule="delta", scale=1.0)[0][..., 0]

    assert torch.equal(reads(none + 2), 1 - 2 * (bits.cumsum(2) % 2).double())
    assert (reads(uniform(1, 1, 40, seed=1)) > 0).all()
