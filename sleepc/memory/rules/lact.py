"""The memory of LaCT: a SwiGLU MLP, written once a window by an orthogonalised gradient (arXiv 2505.23884).

    f(q) = W1 (silu(W0 q) * W2 q)                    W0, W2 [d, dk], W1 [dv, d], of a head
    L = sum_t <f(k_t), v_t>                          token t counts eta0, eta1, eta2 times in the gradient of each
    W' = rows(W + ns(dL/dW))                         rows: every row as long as it was. W is what was learned with the
                                                     layer, and what was added to it, which alone is state
    ns: X = G / |G|, and for five (a, b, c)          A = X Xᵀ, X <- a X + (b A + c A²) X

What the paper leaves open, or what is different here:
- A chunk is a window, since it is when sleeps come; the paper's are 2,048 tokens and more. Reads come before the write,
  as there: what a window's tokens read is what earlier windows have written.
- The width d is dk. Queries and keys are those of the layer's other memories, without positions (the paper's take SiLU,
  unit length and rotary positions), and so are the norm and gate around the answer.
- Its momentum is optional there, and left out.
- ns makes every singular value about 1 however small the gradient is, so rates weigh tokens against each other, and a
  window of few tokens writes as much as a long one. Without a gradient nothing changes.
- Rows' lengths are taken from W as it is, which has those that it started with.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from sleepc.memory.parameters import normal
from sleepc.memory.rule import Gate, LearnedTensor, Rule, Shape, State, States, Tokens

# The coefficients of the paper's code, fitted to bring singular values near 1 in five steps.
STEPS = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
TINY = 1e-24  # added to squares: no gradient stays none, and has a slope that float32 can hold
RANK, GAIN = 32, 0.5  # of W0 and W2 at first: GAIN (U V + 1)


def _inner(heads: int, dk: int, dv: int) -> tuple[int, int, int]:
    return heads, dk, dk


def _outer(heads: int, dk: int, dv: int) -> tuple[int, int, int]:
    return heads, dv, dk


def near_identity(shape: Shape, generator: Generator) -> Tensor:
    """Of each head [d, d] half of the identity and a map of low rank, one below the other."""
    width = shape[1]
    heads, rank = shape[0] // width, min(RANK, width)
    left = torch.randn(heads, width, rank, generator=generator) * rank**-0.5
    right = torch.randn(heads, rank, width, generator=generator) * width**-0.5
    values: Tensor = GAIN * (left @ right + torch.eye(width))
    return values.flatten(0, 1)


def _rate(name: str) -> Gate:
    """softplus(W x + b), 0.001 at first."""
    return Gate("softplus", weight=f"w_lr{name}", bias=f"b_lr{name}", start=math.log(math.expm1(0.001)))


def whole(state: States) -> list[Tensor]:
    """W0, W1, W2, of what was added to them and what was learned."""
    return [added + start for added, start in zip(state[:3], state[3:], strict=True)]


def gradients(t: Tokens, state: States) -> list[Tensor]:
    """dL/dW0, dL/dW1, dL/dW2 of tokens k [.., T, dk], v [.., T, dv] and rates [.., T]."""
    w0, w1, w2 = whole(state)
    k, v = t["k"], t["v"]
    opened, taken = k @ w0.mT, k @ w2.mT
    share = opened.sigmoid()
    gate = opened * share
    back = v @ w1
    slope = share * (1 + opened - gate)  # of silu
    return [
        (t["eta0"][..., None] * back * taken * slope).mT @ k,
        (t["eta1"][..., None] * v).mT @ (gate * taken),
        (t["eta2"][..., None] * back * gate).mT @ k,
    ]


def orthogonal(g: Tensor) -> Tensor:
    """G [.., m, n] with singular values near 1, but 0 of 0."""
    x = g * (g.square().sum((-2, -1), keepdim=True) + TINY).rsqrt()
    for a, b, c in STEPS:
        inner = x @ x.mT
        x = a * x + (b * inner + c * (inner @ inner)) @ x
    return x


def step(t: Tokens, state: States) -> list[Tensor]:
    """All tokens of a window, in any order."""
    new = []
    for added, w, g in zip(state, whole(state), gradients(t, state), strict=False):
        moved = w + orthogonal(g)
        new.append(added + (moved * (_lengths(w) / _lengths(moved)) - w))
    return new


def _lengths(w: Tensor) -> Tensor:
    """Of the rows [.., m, 1]."""
    return (w.square().sum(-1, keepdim=True) + TINY).sqrt()


def read(state: States, q: Tensor) -> Tensor:
    """f(q), for q [.., n, dk]."""
    w0, w1, w2 = whole(state)
    return (torch.nn.functional.silu(q @ w0.mT) * (q @ w2.mT)) @ w1.mT


def naive(t: Tokens, state: States) -> list[Tensor]:
    """The formulas above, token by token."""
    w0, w1, w2 = (x + start for x, start in zip(state[:3], state[3:], strict=True))
    d0, d1, d2 = torch.zeros_like(w0), torch.zeros_like(w1), torch.zeros_like(w2)
    for i in range(t["k"].shape[-2]):
        k, v = t["k"][..., i, :], t["v"][..., i, :]
        z, y = torch.einsum("...dk,...k->...d", w0, k), torch.einsum("...dk,...k->...d", w2, k)
        silu = z / (1 + (-z).exp())
        slope = (1 + (-z).exp() * (1 + z)) / (1 + (-z).exp()) ** 2
        dh = torch.einsum("...vd,...v->...d", w1, v)
        d0 = d0 + torch.einsum("...,...d,...k->...dk", t["eta0"][..., i], dh * y * slope, k)
        d1 = d1 + torch.einsum("...,...v,...d->...vd", t["eta1"][..., i], v, silu * y)
        d2 = d2 + torch.einsum("...,...d,...k->...dk", t["eta2"][..., i], dh * silu, k)
    written = (_naive_write(w, g) for w, g in ((w0, d0), (w1, d1), (w2, d2)))
    return [w - start for w, start in zip(written, state[3:], strict=True)]


def _naive_write(w: Tensor, g: Tensor) -> Tensor:
    """The published five steps, as sums of odd powers of the singular values of G."""
    u, s, v = torch.linalg.svd(g, full_matrices=False)
    size = s.square().sum(-1, keepdim=True).sqrt()
    s = torch.where(size > 0, s / size.clamp(min=1e-300), 0)
    for a, b, c in (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ):
        s = a * s + b * s**3 + c * s**5
    moved = w + torch.einsum("...mr,...r,...rn->...mn", u, s, v)
    size = w.norm(dim=-1, keepdim=True)
    return torch.where(size > 0, moved / moved.norm(dim=-1, keepdim=True).clamp(min=1e-300) * size, 0)


def naive_read(state: States, q: Tensor) -> Tensor:
    """f(q) once more."""
    z, y = (torch.einsum("...dk,...nk->...nd", state[i] + state[i + 3], q) for i in (0, 2))
    return torch.einsum("...vd,...nd->...nv", state[1] + state[4], z / (1 + (-z).exp()) * y)


RULE = Rule(
    name="lact",
    corrects=False,
    states={
        "W0": State(_inner),
        "W1": State(_outer),
        "W2": State(_inner),
    },
    gates={"eta0": _rate("0"), "eta1": _rate("1"), "eta2": _rate("2")},
    step=step,
    read=read,
    naive=naive,
    naive_read=naive_read,
    by_window=True,
    learned={
        "start_0": LearnedTensor(_inner, near_identity),
        "start_1": LearnedTensor(_outer, normal),
        "start_2": LearnedTensor(_inner, near_identity),
    },
)
