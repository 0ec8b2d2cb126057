"""Rule `titans`, many tokens at once, against the paper's equations in float64 and what they come to in special cases.

Its checks are those of the notes on the paper: equal to the gated delta rule without momentum, the closed form of a
chunk, chunks of any size, no step and no memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from sleepc.ops import functional
from tests.ops.cases import Memory, memory, normal, uniform, unit, worst

TOKENS = 37


@dataclass(frozen=True)
class Stream:
    """Of `titans`: what its operator takes, and the paper's numbers of each token [B,H,T]."""

    x: Memory
    eta: Tensor
    token: Tensor
    momentum: Tensor

    def run(self, chunk: int) -> list[Tensor]:
        """Reads, S and P."""
        gates, state = [self.eta, self.token], [self.x.state, self.momentum]
        return functional.delta_rule(*self.x.stream, state, gates, rule="titans", scale=0.7, chunk=chunk)

    def with_gates(self, **values: Tensor) -> Stream:
        """Other gates g, beta (of the tokens) or eta, or another state."""
        own = {name: values.pop(name) for name in ("eta", "token", "momentum") if name in values}
        return replace(self, x=replace(self.x, **values), **own)


def stream(tokens: int = TOKENS, *, channel: bool = False, seed: int = 0) -> Stream:
    """Two rows; the second has padding among its tokens and at its end."""
    x = memory(tokens, channel=channel, seed=seed)
    eta, token = uniform(2, 2, tokens, seed=seed + 6), torch.ones(2, 2, tokens).double()
    if tokens:
        pads = [tokens // 3, tokens - 1]
        x.k[1, :, pads], x.g[1, :, pads], x.beta[1, :, pads] = 0.0, 0.0, 0.0
        eta[1, :, pads], token[1, :, pads] = 1.0, 0.0
    return Stream(x, eta, token, normal(2, 2, 4, 3, seed=seed + 7))


def by_the_paper(s: Stream) -> list[Tensor]:
    """M_t = (1 - alpha_t) M_{t-1} + S_t, S_t = eta_t S_{t-1} - theta_t grad |M_{t-1} k_t - v_t|^2 (arXiv 2501.00663,
    equations 8 to 10 and 13) with the gradient by autograd, beta = 2 theta and e^g = 1 - alpha; padding is left out.
    """
    out = torch.zeros(*s.x.q.shape[:3], s.x.v.shape[3], dtype=torch.float64)
    memories, surprises = s.x.state.clone(), s.momentum.clone()
    rows, heads, tokens = s.x.k.shape[:3]
    for b in range(rows):
        for h in range(heads):
            for t in range(tokens):
                if s.token[b, h, t]:
                    m = memories[b, h].clone().requires_grad_()
                    loss = (m.T @ s.x.k[b, h, t] - s.x.v[b, h, t]).square().sum()
                    (gradient,) = torch.autograd.grad(loss, m)
                    surprises[b, h] = s.eta[b, h, t] * surprises[b, h] - s.x.beta[b, h, t] / 2 * gradient
                    kept = s.x.g[b, h, t].exp()
                    memories[b, h] = (kept[:, None] if kept.dim() else kept) * memories[b, h] + surprises[b, h]
                for q in range(2 * h, 2 * h + 2):
                    out[b, q, t] = 0.7 * s.x.q[b, q, t] @ memories[b, h]
    return [out, memories, surprises]


@pytest.mark.parametrize("channel", [False, True], ids=["head", "channel"])
@pytest.mark.parametrize("chunk", [1, 2, 7, 16, 36, 64])
def test_chunks_of_any_size_are_the_papers_tokens(chunk: int, channel: bool) -> None:
    s = stream(channel=channel)
    assert max(map(worst, s.run(chunk), by_the_paper(s))) < 1e-12


@pytest.mark.parametrize("chunk", [1, 16])
def test_without_momentum_it_is_the_gated_delta_rule(chunk: int) -> None:
    """With beta and v rescaled, since its error is of the memory before it has decayed."""
    s = stream().with_gates(eta=torch.zeros(2, 2, TOKENS).double(), momentum=torch.zeros(2, 2, 4, 3).double())
    kept, x = s.x.g.exp(), s.x
    same = replace(x, beta=x.beta / kept, v=x.v * kept[..., None])
    wanted = functional.delta_rule(*same.stream, [same.state], rule="gated_delta", scale=0.7)
    real = s.token.repeat_interleave(2, 1).bool()
    out, state, _ = s.run(chunk)
    assert worst(out[real], wanted[0][real]) < 1e-12
    assert worst(state, wanted[1]) < 1e-12


def test_the_closed_form_of_a_chunk() -> None:
    """Of orthonormal keys and an empty memory a surprise is beta v, and counts in the memory at the end by the sum over
    later tokens of what momentum has carried there and forgetting has left.
    """
    x = memory(8, dk=8, dv=3)
    x = replace(x, k=torch.linalg.qr(normal(2, 2, 8, 8)).Q, state=torch.zeros(2, 2, 8, 3).double())
    eta, kept = uniform(2, 2, 8, seed=9), x.g.exp()
    s = Stream(x, eta, torch.ones(2, 2, 8).double(), torch.zeros(2, 2, 8, 3).double())
    wanted = torch.zeros(2, 2, 8, 3).double()
    for i in range(8):
        weight = sum(eta[..., i + 1 : j + 1].prod(-1) * kept[..., j + 1 :].prod(-1) for j in range(i, 8))
        wanted += (weight * x.beta[..., i])[..., None, None] * x.k[:, :, i, :, None] * x.v[:, :, i, None]
    assert worst(s.run(8)[1], wanted) < 1e-12


def test_no_step_and_no_memory() -> None:
    """theta = 0: what is there decays; alpha = 1: M is S."""
    s = stream().with_gates(momentum=torch.zeros(2, 2, 4, 3).double())
    still = s.with_gates(beta=torch.zeros(2, 2, TOKENS).double())
    assert worst(still.run(16)[1], s.x.g.sum(2).exp()[..., None, None] * s.x.state) < 1e-12
    forgetful = s.with_gates(g=torch.full((2, 2, TOKENS), -1e3).double())
    _, state, momentum = forgetful.run(16)
    assert worst(state[0], momentum[0]) < 1e-12


@pytest.mark.parametrize("tokens", [2, 64])
def test_padding_alone_changes_nothing(tokens: int) -> None:
    s = stream(tokens)
    none = torch.zeros(2, 2, tokens).double()
    pads = s.with_gates(k=0 * s.x.k, g=none, beta=none, eta=none + 1, token=none)
    _, state, momentum = pads.run(64)
    assert torch.equal(state, s.x.state)
    assert torch.equal(momentum, s.momentum)


def test_gates_at_their_ends_in_float32() -> None:
    """Momentum and decay that round to 0 or 1 leave numbers, and gradients, finite; sums of large logarithms cost
    digits of what is later.
    """
    s = stream(40).with_gates(token=torch.ones(2, 2, 40).double())
    ends = torch.tensor([0.0, 1.0, 1e-40, 0.5]).repeat(10).expand(2, 2, 40)
    wide = s.with_gates(eta=ends.double(), g=-100.0 * (1 - ends.double()))
    x = wide.x.to(torch.float32, torch.float32)
    narrow = Stream(x, ends.clone().requires_grad_(), s.token.float(), s.momentum.float())
    found = narrow.run(64)
    assert max(worst(a.detach(), b) for a, b in zip(found, by_the_paper(wide), strict=True)) < 1e-3
    (gradient,) = torch.autograd.grad(found[1].sum(), [narrow.eta])
    assert gradient.isfinite().all()


def test_keys_are_found_again() -> None:
    """Of orthonormal keys, each written often without decay and with little momentum, the values come back."""
    k = unit(torch.linalg.qr(normal(2, 2, 4, 4)).Q).repeat(1, 1, 30, 1)
    v = normal(2, 2, 4, 3, seed=1).repeat(1, 1, 30, 1)
    x = Memory(k, k, v, torch.zeros(2, 2, 120).double(), torch.full((2, 2, 120), 0.5).double(), v.new_zeros(2, 2, 4, 3))
    s = Stream(x, torch.full((2, 2, 120), 0.1).double(), torch.ones(2, 2, 120).double(), v.new_zeros(2, 2, 4, 3))
    out, _, _ = s.run(32)
    assert worst(out[:, :, -4:] / 0.7, v[:, :, -4:]) < 1e-3
