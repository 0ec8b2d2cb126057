"""Rule `titans_mlp` against the paper's equations in float64, with the gradient by autograd; and what it comes to in
special cases. Its checks are those of the notes on the paper for an MLP: chunks, no step and no memory, the gradient,
more pairs than a linear map can hold.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from sleepc.memory.rules import titans_mlp
from sleepc.ops import functional
from tests.ops.cases import Memory, memory, normal, uniform, unit, worst

TOKENS, KEYS, VALUES = 19, 4, 3
HIDDEN = 4 * KEYS


@dataclass(frozen=True)
class Stream:
    """What the operator takes; `state`: D1, D2, P1, P2, and W1, W2, which are learned."""

    x: Memory
    eta: Tensor
    token: Tensor
    state: tuple[Tensor, ...]

    def run(self, chunk: int = 64) -> list[Tensor]:
        """Reads, D1, D2, P1 and P2."""
        gates = [self.eta, self.token]
        return functional.delta_rule(*self.x.stream, self.state, gates, rule="titans_mlp", scale=0.7, chunk=chunk)


def stream(tokens: int = TOKENS) -> Stream:
    """Two rows; the second has padding among its tokens and at its end."""
    x = memory(tokens, dk=KEYS, dv=VALUES)
    x = replace(x, v=4 * x.v)  # so that some steps are cut, and some are not
    eta, token = uniform(2, 2, tokens, seed=6), torch.ones(2, 2, tokens).double()
    pads = [tokens // 3, tokens - 1]
    x.k[1, :, pads], x.g[1, :, pads], x.beta[1, :, pads] = 0.0, 0.0, 0.0
    eta[1, :, pads], token[1, :, pads] = 1.0, 0.0
    first, second = (2, 2, KEYS, HIDDEN), (2, 2, HIDDEN, VALUES)
    shapes = (first, second, first, second, first[1:], second[1:])
    return Stream(x, eta, token, tuple(0.3 * normal(*shape, seed=i + 7) for i, shape in enumerate(shapes)))


def by_the_paper(s: Stream) -> tuple[list[Tensor], set[bool]]:
    """S_t = eta_t S_{t-1} - theta_t grad |M_{t-1}(k_t) - v_t|^2, M_t = (1 - alpha_t) M_{t-1} + S_t (arXiv 2501.00663,
    equations 8 to 14), M being what is added to what was learned; theta is beta / 2, but no more than beta times
    Polyak's step. Padding is left out. Also whether a step was cut, of all tokens.
    """
    out, x, cut = torch.zeros(*s.x.q.shape[:3], VALUES, dtype=torch.float64), s.x, set()
    d1, d2, p1, p2 = (each.clone() for each in s.state[:4])
    for b, h, t in torch.cartesian_prod(*map(torch.arange, x.k.shape[:3])).tolist():
        w1, w2 = ((w[h] + d[b, h]).requires_grad_() for w, d in zip(s.state[4:], (d1, d2), strict=True))
        if s.token[b, h, t]:
            loss = (torch.nn.functional.silu(x.k[b, h, t] @ w1) @ w2 - x.v[b, h, t]).square().sum()
            gradients = torch.autograd.grad(loss, [w1, w2])
            polyak = loss.detach() / sum(g.square().sum() for g in gradients)
            theta = x.beta[b, h, t] * torch.minimum(torch.tensor(0.5).double(), 2 * polyak)
            cut.add(bool(2 * polyak < 0.5))
            for d, p, gradient in zip((d1, d2), (p1, p2), gradients, strict=True):
                p[b, h] = s.eta[b, h, t] * p[b, h] - theta * gradient
                d[b, h] = x.g[b, h, t].exp() * d[b, h] + p[b, h]
        for q in range(2 * h, 2 * h + 2):
            hidden = torch.nn.functional.silu(x.q[b, q, t] @ (s.state[4][h] + d1[b, h]))
            out[b, q, t] = 0.7 * hidden @ (s.state[5][h] + d2[b, h])
    return [out, d1, d2, p1, p2], cut


@pytest.mark.parametrize("chunk", [1, 2, 7, 16, 64])
def test_chunks_of_any_size_are_the_papers_tokens(chunk: int) -> None:
    s = stream()
    wanted, cut = by_the_paper(s)
    assert cut == {False, True}
    assert max(map(worst, s.run(chunk), wanted)) < 1e-6  # an epsilon of 1e-6 keeps 0 / 0 away
    assert max(map(worst, s.run(chunk), s.run(1))) < 1e-12


def test_the_gradient_is_that_of_finite_differences() -> None:
    """Number by number of both matrices."""
    k, v, w1, w2 = unit(normal(KEYS)), normal(VALUES, seed=1), normal(KEYS, HIDDEN), normal(HIDDEN, VALUES)
    hidden, back, miss = titans_mlp.gradient(k, v, w1, w2)

    def loss(first: Tensor, second: Tensor) -> Tensor:
        return (torch.nn.functional.silu(k @ first) @ second - v).square().sum() / 2

    for place, found in enumerate((torch.outer(k, back), torch.outer(hidden, miss))):
        for at in torch.cartesian_prod(*map(torch.arange, found.shape)).tolist():
            ends = []
            for small in (1e-6, -1e-6):
                moved = [w1.clone(), w2.clone()]
                moved[place][tuple(at)] += small
                ends.append(loss(moved[0], moved[1]))
            assert abs((ends[0] - ends[1]) / 2e-6 - found[tuple(at)]) < 1e-7


def test_no_step_and_no_memory() -> None:
    """theta = 0: what was written decays; alpha = 1: M is S."""
    s = stream()
    none = torch.zeros(2, 2, TOKENS).double()
    still = replace(s, x=replace(s.x, beta=none), state=(*s.state[:2], *(0 * p for p in s.state[2:4]), *s.state[4:]))
    _, *found = still.run()
    fade = s.x.g.sum(2).exp()[..., None, None]
    assert max(worst(a, fade * b) for a, b in zip(found[:2], s.state[:2], strict=True)) < 1e-12
    _, d1, d2, p1, p2 = replace(s, x=replace(s.x, g=none - 1e3)).run()
    assert max(worst(d1[0], p1[0]), worst(d2[0], p2[0])) < 1e-12


def test_one_step_comes_as_close_as_beta_says() -> None:
    """To first order: a step of beta = 0.001 along a gradient that is cut leaves 0.999 of the error along itself."""
    s = stream(1)
    ones = torch.ones(2, 2, 1).double()
    x = replace(s.x, k=unit(normal(2, 2, 1, KEYS)), v=100 * s.x.v, g=0 * ones, beta=0.001 * ones)
    state = (*s.state[:2], *(0 * p for p in s.state[2:4]), *(5 * w for w in s.state[4:]))
    _, *new = Stream(x, ones, ones, state).run()
    before, after = (
        functional.delta_rule_read(x.k, [*of[:4], *state[4:]], rule="titans_mlp", scale=1.0) for of in (state, new)
    )
    left = ((after - x.v) * (before - x.v)).sum(-1) / (before - x.v).square().sum(-1)
    assert worst(left, torch.full_like(left, 0.999)) < 1e-4


@pytest.mark.parametrize("tokens", [3, 64])
def test_padding_alone_changes_nothing(tokens: int) -> None:
    s, none = stream(tokens), torch.zeros(2, 2, tokens).double()
    pads = replace(s, x=replace(s.x, k=0 * s.x.k, g=none, beta=none), eta=none + 1, token=none)
    assert all(map(torch.equal, pads.run()[1:], s.state[:4]))


def test_an_empty_memory_reads_what_was_learned() -> None:
    """Nothing, as a layer begins."""
    w = [
        each.initial((2 * rows, columns), torch.Generator())
        for each in titans_mlp.RULE.learned.values()
        for _, rows, columns in [each.shape(2, KEYS, VALUES)]
    ]
    first, second = (torch.stack(each.chunk(2)).double() for each in w)
    s = stream()
    empty = [*(0 * each for each in s.state[:4]), first, second]
    assert not functional.delta_rule_read(s.x.q, empty, rule="titans_mlp", scale=1.0).any()


def test_gradients_are_those_of_finite_differences() -> None:
    """Of keys, values, gates, states and what is learned, through the steps: second order."""
    s = stream(3)
    x = s.x.map(lambda each: each[:1, :1])
    leaves = [
        x.k,
        x.v,
        x.beta * 0.5,
        s.eta[:1, :1],
        *(each[:1, :1] for each in s.state[:4]),
        *(w[:1] for w in s.state[4:]),
    ]
    leaves = [each.clone().requires_grad_() for each in leaves]

    def reads(k: Tensor, v: Tensor, beta: Tensor, eta: Tensor, *state: Tensor) -> Tensor:
        gates = [eta, s.token[:1, :1]]
        return functional.delta_rule(x.q, k, v, x.g, beta, state, gates, rule="titans_mlp", scale=1.0, chunk=2)[0]

    assert torch.autograd.gradcheck(reads, leaves)


def passes(n: int, size: float, d: int = 16) -> tuple[Tensor, Tensor, list[Tensor]]:
    """n random pairs with values of length `size`, and the memory after 50 passes over them, in float32."""
    k, v = unit(normal(1, 1, n, d)).float(), size * unit(normal(1, 1, n, d, seed=1)).float()
    first, second = (each.shape(1, d, d) for each in titans_mlp.RULE.learned.values())
    state = [torch.zeros(1, *shape) for shape in (first, second, first, second)]
    learned = [normal(*first).float(), torch.zeros(second)]
    still, half = torch.zeros(1, 1, n), torch.full((1, 1, n), 0.5)
    given = (k, v, still, half, [*state, *learned], [still + 0.1, still + 1])
    new = functional.replay(*given, rule="titans_mlp", passes=50, written=False)
    return k, v, [*new, *learned]


@pytest.mark.parametrize("size", [1.0, 30.0])
def test_it_holds_more_pairs_than_a_linear_map(size: float) -> None:
    """2 d_k of them, in a fraction of the error that the best linear map leaves; whatever size values are."""
    k, v, state = passes(32, size)
    best = torch.linalg.lstsq(k[0, 0], v[0, 0]).solution
    linear = (k[0, 0] @ best - v[0, 0]).square().sum()
    found = functional.delta_rule_read(k, state, rule="titans_mlp", scale=1.0)
    assert (found - v).square().sum() < 0.1 * linear
