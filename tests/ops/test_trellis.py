"""The rules of TRELLIS against the paper's equations in float64: their gradient by autograd, and special cases.

Their checks are those of the notes on the paper: a step is a gradient step, two gated delta rules with the identity,
chunks of any size, no step and a whole one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from sleepc.memory.registry import RULES
from sleepc.ops import functional
from tests.ops.cases import Memory, memory, normal, uniform, unit, worst

TOKENS, KEYS, VALUES = 23, 4, 3
PHI: dict[str, Callable[[Tensor], Tensor]] = {"trellis": lambda z: z, "trellis_silu": torch.nn.functional.silu}
RULE = pytest.mark.parametrize("rule", PHI)


@dataclass(frozen=True)
class Stream:
    """Keys are written with x.g and x.beta, values with `decay` and `step`; codes [B,H,T,m]; banks as states."""

    x: Memory
    decay: Tensor
    step: Tensor
    codes: tuple[Tensor, Tensor]
    banks: tuple[Tensor, Tensor]

    def run(self, rule: str, chunk: int = 64) -> list[Tensor]:
        """Reads, the bank of keys and that of values, both as states."""
        gates = [self.decay, self.step, *self.codes]
        return functional.delta_rule(*self.x.stream, list(self.banks), gates, rule=rule, scale=0.7, chunk=chunk)


def stream(tokens: int = TOKENS, *, channel: bool = False) -> Stream:
    """Two rows; the second has padding among its tokens and at its end."""
    x = memory(tokens, channel=channel, dk=KEYS, dv=VALUES)
    decay, step = -2 * uniform(2, 2, tokens, seed=6), uniform(2, 2, tokens, seed=7)
    codes = tuple(unit(normal(2, 2, tokens, KEYS, seed=seed)) for seed in (8, 9))
    pads = [tokens // 3, tokens - 1] if tokens > 1 else []
    for each in (x.k, x.g, x.beta, decay, step, *codes):
        each[1, :, pads] = 0.0
    banks = (normal(2, 2, KEYS, KEYS, seed=11), normal(2, 2, KEYS, VALUES, seed=10))
    return Stream(x, decay, step, (codes[0], codes[1]), banks)


def stepped(bank: Tensor, w: Tensor, code: Tensor, phi: Callable[[Tensor], Tensor], size: Tensor) -> Tensor:
    """-size times the gradient of |phi(M w) - a|^2 / 2 at M [m,d], by autograd."""
    m = bank.clone().requires_grad_()
    loss = (phi(m @ w) - code).square().sum() / 2
    (gradient,) = torch.autograd.grad(loss, m)
    return -size * gradient


def by_the_paper(s: Stream, rule: str) -> list[Tensor]:
    """M_t = b_t M_{t-1} - gamma_t u_t w_t^T for both banks [m,d] (arXiv 2512.23852), then the two passes of a read."""
    phi, x = PHI[rule], s.x
    out = torch.zeros(*x.q.shape[:3], VALUES, dtype=torch.float64)
    keys, values = s.banks[0].mT.clone(), s.banks[1].clone()
    for b, h, t in torch.cartesian_prod(*map(torch.arange, x.k.shape[:3])).tolist():
        length = (x.v[b, h, t].square().sum() + 1e-6).sqrt()
        w, code = x.v[b, h, t] / length, s.codes[1][b, h, t] * length
        change = stepped(values[b, h], w, code, phi, s.step[b, h, t])
        values[b, h] = s.decay[b, h, t].exp() * values[b, h] + change
        change = stepped(keys[b, h], x.k[b, h, t], s.codes[0][b, h, t], phi, x.beta[b, h, t])
        keys[b, h] = x.g[b, h, t].exp() * keys[b, h] + change
        for q in range(2 * h, 2 * h + 2):
            slots = torch.nn.functional.silu(keys[b, h] @ x.q[b, q, t])
            out[b, q, t] = 0.7 * values[b, h].T @ slots / (slots.square().sum() + 1e-6).sqrt()
    return [out, keys.mT, values]


@RULE
@pytest.mark.parametrize("channel", [False, True], ids=["head", "channel"])
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunks_of_any_size_are_the_papers_tokens(rule: str, chunk: int, channel: bool) -> None:
    s = stream(channel=channel)
    assert max(map(worst, s.run(rule, chunk), by_the_paper(s, rule))) < 1e-12


@RULE
def test_a_step_is_the_numerical_gradient(rule: str) -> None:
    """Of the bank of keys, number by number; e^g = 1 and beta = 1."""
    s, phi, small = stream(1), PHI[rule], 1e-6
    still = torch.zeros(2, 2, 1).double()
    after = replace(s, x=replace(s.x, g=still, beta=still + 1)).run(rule)[1]
    k, code, bank = s.x.k[0, 0, 0], s.codes[0][0, 0, 0], s.banks[0][0, 0]

    def loss(at: Tensor) -> Tensor:
        return (phi(at.T @ k) - code).square().sum() / 2

    wanted = torch.zeros(KEYS, KEYS).double()
    for i, j in torch.cartesian_prod(torch.arange(KEYS), torch.arange(KEYS)).tolist():
        apart = torch.zeros(KEYS, KEYS).double()
        apart[i, j] = small
        wanted[i, j] = (loss(bank + apart) - loss(bank - apart)) / (2 * small)
    assert worst(bank - after[0, 0], wanted) < 1e-8


@pytest.mark.parametrize("chunk", [1, 64])
def test_with_the_identity_it_is_two_gated_delta_rules(chunk: int) -> None:
    """Of decay b, beta = gamma / b and value b a, on the transposed bank; what the first finds asks the second."""
    s = stream()
    x, found = s.x, s.run("trellis", chunk)
    keys = (x.k, s.codes[0] * x.g.exp()[..., None], x.g, x.beta / x.g.exp())
    asked, bank = functional.delta_rule(x.q, *keys, [s.banks[0]], rule="gated_delta", scale=1.0)
    assert worst(found[1], bank) < 1e-12
    length = (x.v.square().sum(-1, keepdim=True) + 1e-6).sqrt()
    written = (x.v / length, s.codes[1] * length * s.decay.exp()[..., None], s.decay, s.step / s.decay.exp())
    slots = torch.nn.functional.silu(asked)
    slots = slots / (slots.square().sum(-1, keepdim=True) + 1e-6).sqrt()
    values = s.banks[1].mT
    for t in range(TOKENS):
        w, code, decay, step = (each[:, :, t : t + 1] for each in written)
        (values,) = functional.replay(w, code, decay, step, [values], rule="gated_delta", passes=1, written=False)
        every = values.repeat_interleave(2, 1)
        assert worst(found[0][:, :, t], 0.7 * torch.einsum("bhvm,bhm->bhv", every, slots[:, :, t])) < 1e-12
    assert worst(found[2], values.mT) < 1e-12


@RULE
def test_without_steps_banks_only_decay(rule: str) -> None:
    s = stream()
    none = torch.zeros(2, 2, TOKENS).double()
    _, keys, values = replace(s, x=replace(s.x, beta=none), step=none).run(rule)
    assert worst(values, s.decay.sum(2).exp()[..., None, None] * s.banks[1]) < 1e-12
    assert worst(keys, s.x.g.sum(2).exp()[..., None, None] * s.banks[0]) < 1e-12


def test_one_whole_step_makes_a_code_exact() -> None:
    """b = gamma = 1, the identity: M w = a; a value is found by its code, at its own size."""
    s = stream(1)
    none = torch.zeros(2, 2, 1).double()
    sharp = replace(s, x=replace(s.x, g=none, beta=none + 1), decay=none, step=none + 1)
    _, keys, values = sharp.run("trellis")
    assert worst(torch.einsum("bhkm,bhk->bhm", keys, s.x.k[:, :, 0]), s.codes[0][:, :, 0]) < 1e-12
    length = (s.x.v.square().sum(-1, keepdim=True) + 1e-6).sqrt()
    assert worst((values @ (s.x.v / length).mT).mT, length * s.codes[1]) < 1e-5  # |w| is 1 but for an epsilon


def test_what_one_code_wrote_another_finds() -> None:
    """With orthonormal keys, values and codes, these equal in both banks, each key returns its value."""
    k, v = (torch.linalg.qr(normal(2, 2, 4, 4, seed=seed)).Q[:, :, :3] for seed in (0, 1))
    codes, none = torch.eye(4).double().expand(2, 2, 4, 4)[:, :, :3], torch.zeros(2, 2, 3).double()
    empty = torch.zeros(2, 2, 4, 4).double()
    x = Memory(k, k, 2 * v, none, none + 1, empty)
    _, *banks = Stream(x, none, none + 1, (codes, codes), (empty, empty)).run("trellis")
    assert worst(functional.delta_rule_read(k, banks, rule="trellis", scale=1.0), 2 * v) < 1e-5


def test_an_empty_memory_reads_nothing() -> None:
    s = stream()
    empty = [torch.zeros_like(bank) for bank in s.banks]
    for rule in PHI:
        assert not functional.delta_rule_read(s.x.q, empty, rule=rule, scale=1.0).any()


@RULE
@pytest.mark.parametrize("tokens", [2, 64])
def test_padding_alone_changes_nothing(rule: str, tokens: int) -> None:
    s = stream(tokens)
    none, codes = torch.zeros(2, 2, tokens).double(), torch.zeros(2, 2, tokens, KEYS).double()
    pads = replace(s, x=replace(s.x, k=0 * s.x.k, g=none, beta=none), decay=none, step=none, codes=(codes, codes))
    assert all(map(torch.equal, pads.run(rule)[1:], s.banks))


def test_gates_at_their_ends_in_float32() -> None:
    """Decays that forget all leave numbers, and gradients, finite."""
    s = stream(40)
    ends = -1e3 * torch.tensor([0.0, 1.0, 1e-40, 0.5]).repeat(10).expand(2, 2, 40).double()
    wide = replace(s, x=replace(s.x, g=ends), decay=ends)
    x = wide.x.to(torch.float32, torch.float32)
    steps = wide.step.float().requires_grad_()
    codes, banks = (tuple(each.float() for each in pair) for pair in (s.codes, s.banks))
    found = Stream(x, ends.float(), steps, (codes[0], codes[1]), (banks[0], banks[1])).run("trellis")
    assert max(worst(a.detach(), b) for a, b in zip(found, by_the_paper(wide, "trellis"), strict=True)) < 1e-3
    (gradient,) = torch.autograd.grad(found[2].sum(), [steps])
    assert gradient.isfinite().all()


@RULE
def test_gradients_are_those_of_finite_differences(rule: str) -> None:
    x = memory(4, rows=1, heads=1, memories=1, dk=3, dv=2)
    token = torch.zeros(1, 1, 4).double()
    leaves = [x.q, x.k, x.v, normal(1, 1, 4, 3, seed=1), normal(1, 1, 4, 3, seed=2), normal(1, 1, 3, 3, seed=4)]
    leaves = [each.clone().requires_grad_() for each in (*leaves, normal(1, 1, 3, 2, seed=3))]

    def reads(q: Tensor, k: Tensor, v: Tensor, code: Tensor, code_v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        gates = [token - 0.1, token + 0.5, code, code_v]
        given = (q, k, v, token - 0.2, x.beta, [keys, values], gates)
        return functional.delta_rule(*given, rule=rule, scale=1.0, chunk=3)[0]

    assert torch.autograd.gradcheck(reads, leaves)


def test_both_correct() -> None:
    assert all(RULES[rule].corrects for rule in PHI)
