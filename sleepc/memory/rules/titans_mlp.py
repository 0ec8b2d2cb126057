"""The memory of Titans with an MLP of two layers: online gradient descent with learned momentum (arXiv 2501.00663).

    M(k) = SiLU(k W1) W2, W1 [d_k, 4 d_k], W2 [4 d_k, d_v]; e = M(k) - v; G the gradient of |e|² / 2 at both matrices
    P' = eta P - theta G             theta = beta min(1, |e|² / |G|²), beta with the gradient's factor 2 counted in
    D' = e^g D + P'                  W = W_0 + D: W_0 is learned with the layer, D what this stream has taught

What the paper leaves open, and where this is another:
- SiLU, and four times as many hidden numbers as a key has (third-party code of depth 2 has 4, too), without a norm or a
  residual path. W1_0 starts as random numbers that give unit variance behind a key, W2_0 at zero: empty, it reads 0.
- Steps: theta is a function of x in the paper, and of any size there must be values with which beta alone diverges (of
  length 8, with beta 0.5, within 64 pairs). Here no step is longer than Polyak's, with which e would vanish to first
  order, times beta: with a matrix as the memory and unit keys theta is beta, as in rule `titans`.
- Forgetting goes back to W_0. In the paper alpha takes from W itself; W1 then fades with everything (measured, random
  pairs, half-life 256: after 1,000 tokens nothing is read), since a layer learns nothing behind one that is zero.
- The paper computes a chunk's gradients where it began, which is another function for every size of chunk. Here tokens
  come one by one, so that no result depends on how a stream is cut. A chunk needs no matrix for each of them: unrolled,
  W at a token is what is left of the chunk's first W, and products of the vectors of tokens before it.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Generator, Tensor

from sleepc.memory.chunk import before
from sleepc.memory.momentum import Shares, shares
from sleepc.memory.parameters import zeros
from sleepc.memory.rule import DECAY, STRENGTH, Gate, LearnedTensor, Rule, Shape, State, States, Tokens

HIDDEN = 4  # times d_k
EPSILON = 1e-6


def _first(heads: int, dk: int, dv: int) -> tuple[int, int, int]:
    return heads, dk, HIDDEN * dk


def _second(heads: int, dk: int, dv: int) -> tuple[int, int, int]:
    return heads, HIDDEN * dk, dv


def _unit_variance(shape: Shape, generator: Generator) -> Tensor:
    return torch.randn(*shape, generator=generator)


def _slope(z: Tensor) -> Tensor:
    """Of SiLU."""
    s = z.sigmoid()
    return s * (1 + z * (1 - s))


def _size(beta: Tensor, miss: Tensor, square: Tensor) -> Tensor:
    """theta [.., 1] of a token with the error e [.., dv] and |G|² [.., 1]."""
    error = miss.square().sum(-1, keepdim=True)
    return beta[..., None] * error / (torch.maximum(error, square) + EPSILON)


def _square(k: Tensor, hidden: Tensor, back: Tensor, miss: Tensor) -> Tensor:
    """|G|² [.., 1], G being k back^T and hidden e^T."""
    sizes = [x.square().sum(-1, keepdim=True) for x in (k, back, hidden, miss)]
    return sizes[0] * sizes[1] + sizes[2] * sizes[3]


def gradient(k: Tensor, v: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of |M(k) - v|² / 2, of k [.., dk], v [.., dv] at W1 and W2: the hidden numbers, what comes back to them, e; that
    of W1 is k back^T, that of W2 hidden e^T.
    """
    z = (k[..., None, :] @ first)[..., 0, :]
    hidden = z * z.sigmoid()
    miss = (hidden[..., None, :] @ second)[..., 0, :] - v
    return hidden, _slope(z) * (second @ miss[..., None])[..., 0], miss


def step(t: Tokens, state: States) -> list[Tensor]:
    """One token [B,H,..]; at padding `token` is 0, and P is not added once more."""
    d1, d2, p1, p2, w1, w2 = state
    k, real = t["k"], t["token"][..., None, None]
    hidden, back, miss = gradient(k, t["v"], w1 + d1, w2 + d2)
    theta = _size(t["beta"], miss, _square(k, hidden, back, miss))[..., None]
    kept, eta = t["g"].exp()[..., None, None], t["eta"][..., None, None]
    p1 = eta * p1 - theta * k[..., None] * back[..., None, :]
    p2 = eta * p2 - theta * hidden[..., None] * miss[..., None, :]
    return [kept * d1 + real * p1, kept * d2 + real * p2, p1, p2]


def read(state: States, q: Tensor) -> Tensor:
    """M(q)."""
    d1, d2, _, _, w1, w2 = state
    return torch.nn.functional.silu(q @ (w1 + d1)) @ (w2 + d2)


def chunk(q: Tensor | None, t: Tokens, state: States) -> tuple[Tensor | None, list[Tensor]]:
    """C tokens at once, and what q [B,H,n,C,dk] reads on the way."""
    d1, d2, p1, p2, w1, w2 = state
    k, of = t["k"], shares(t)
    hidden, u1, u2 = _unrolled(t, of, state)
    out = None
    if q is not None:
        left, come, weights = (x[:, :, None] for x in (of.left, of.come, of.weights))

        def through(x: Tensor, matrices: tuple[Tensor, Tensor, Tensor], written: Tensor, u: Tensor) -> Tensor:
            """x [B,H,n,C,..] times the matrix after each token."""
            fixed, memory, momentum = matrices
            now = x @ fixed[:, None] + left * (x @ memory[:, :, None]) + come * (x @ momentum[:, :, None])
            return now + (x @ written.mT[:, :, None] * weights) @ u[:, :, None]

        asked = torch.nn.functional.silu(through(q, (w1, d1, p1), k, u1))
        out = through(asked, (w2, d2, p2), hidden, u2)
    (d1, p1), (d2, p2) = of.ended(d1, p1, k, u1), of.ended(d2, p2, hidden, u2)
    return out, [d1, d2, p1, p2]


def _unrolled(t: Tokens, of: Shares, state: States) -> tuple[Tensor, Tensor, Tensor]:
    """Of every token the hidden numbers, and what it adds to P1 along k, and to P2 along these [B,H,C,..]."""
    d1, d2, p1, p2, w1, w2 = state
    k, v = t["k"], t["v"]
    left, come, weights = before(of.left, 1.0), before(of.come, 0.0), before(of.weights, 0.0)
    known, among = k @ w1 + left * (k @ d1) + come * (k @ p1), weights * (k @ k.mT)
    every = torch.cat([w2.expand_as(d2), d2, p2], -1)
    hidden: list[Tensor] = []
    along_k: list[Tensor] = []
    along: list[Tensor] = []
    for i in range(k.shape[2]):
        z, share = known[:, :, i : i + 1], weights[:, :, i : i + 1, :i]
        factors = torch.cat([torch.ones_like(left[:, :, i : i + 1]), left[:, :, i : i + 1], come[:, :, i : i + 1]], 2)
        if i:
            u1, u2, a = torch.cat(along_k, 2), torch.cat(along, 2), torch.cat(hidden, 2)
            z = z + among[:, :, i : i + 1, :i] @ u1
        now = z * z.sigmoid()
        miss = (factors * (now @ every).reshape(*k.shape[:2], 3, v.shape[3])).sum(2, keepdim=True) - v[:, :, i : i + 1]
        if i:
            miss = miss + (share * (now @ a.mT)) @ u2
        back = (factors * miss).flatten(2)[:, :, None] @ every.mT
        if i:
            back = back + (share * (miss @ u2.mT)) @ a
        back = _slope(z) * back
        theta = _size(t["beta"][:, :, i : i + 1], miss, _square(k[:, :, i : i + 1], now, back, miss))
        hidden.append(now)
        along_k.append(-theta * back)
        along.append(-theta * miss)
    return torch.cat(hidden, 2), torch.cat(along_k, 2), torch.cat(along, 2)


def naive(t: Tokens, state: States) -> list[Tensor]:
    """The formulas above; the gradient by the chain rule, number by number of the hidden layer."""
    d1, d2, p1, p2, w1, w2 = state
    z = torch.einsum("...k,...kh->...h", t["k"], w1 + d1)
    falling = torch.exp(-z)
    hidden, slope = z / (1 + falling), 1 / (1 + falling) + z * falling / (1 + falling) ** 2
    miss = torch.einsum("...h,...hv->...v", hidden, w2 + d2) - t["v"]
    of_first = torch.einsum("...k,...h,...v,...hv->...kh", t["k"], slope, miss, w2 + d2)
    of_second = torch.einsum("...h,...v->...hv", hidden, miss)
    error = torch.sum(miss**2, -1)
    square = torch.sum(of_first**2, (-2, -1)) + torch.sum(of_second**2, (-2, -1))
    theta = t["beta"] * error / (torch.where(square > error, square, error) + 1e-6)
    new = []
    for p, of in ((p1, of_first), (p2, of_second)):
        new.append(torch.einsum("...,...ab->...ab", t["eta"], p) - torch.einsum("...,...ab->...ab", theta, of))
    kept = [torch.einsum("...,...ab->...ab", torch.exp(t["g"]), d) for d in (d1, d2)]
    added = [torch.einsum("...,...ab->...ab", t["token"], p) for p in new]
    return [kept[0] + added[0], kept[1] + added[1], *new]


def naive_read(state: States, q: Tensor) -> Tensor:
    """M(q) once more."""
    d1, d2, _, _, w1, w2 = state
    z = torch.einsum("...nk,...kh->...nh", q, w1 + d1)
    return torch.einsum("...nh,...hv->...nv", z / (1 + torch.exp(-z)), w2 + d2)


RULE = Rule(
    name="titans_mlp",
    corrects=True,
    states={"D1": State(_first), "D2": State(_second), "P1": State(_first), "P2": State(_second)},
    gates={
        "g": replace(DECAY, of_keys=False),
        "beta": STRENGTH,
        "eta": Gate("sigmoid", weight="w_eta", bias="b_eta", start=-2.0, at_padding=1.0),
        "token": Gate("one"),
    },
    step=step,
    read=read,
    naive=naive,
    naive_read=naive_read,
    chunk=chunk,
    learned={"w_first": LearnedTensor(_first, _unit_variance), "w_second": LearnedTensor(_second, zeros)},
)
