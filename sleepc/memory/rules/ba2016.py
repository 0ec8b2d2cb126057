"""Fast weights that attend to the recent past (Ba, Hinton, Mnih, Leibo, Ionescu, arXiv 1610.06258).

    A' = 0.95 A + 0.5 f(k) v^T               f(x) = ReLU(LN(x)), LN over the root of the width: |f(x)| <= 1
    h_0 = f(q),  h_1 = f(q + A^T h_0)        a read is A^T h_1

There the hidden state of a recurrent network is key, value and query at once; here these are k, v and q, of one width.
Settling, with the query as its drive, is as there: one step, constant decay 0.95 and rate 0.5, written before it is
read. What is different: the layer normalisation has no gain and no bias, since a rule has no parameters but gates, and
a read ends with what the settled state finds, not with the state, which is in the space of keys. Nothing is learned
here: what is kept fades by half in 13.5 tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sleepc.memory.chunk import delta_chunk
from sleepc.memory.rule import Gate, Rule, State, States, Tokens, matrix

KEPT, RATE = 0.95, 0.5
SETTLING = 1  # steps of a read before it ends
EPSILON = 1e-6


def step(t: Tokens, state: States) -> list[Tensor]:
    """One token [B,H,..]; at padding `token` is 0."""
    kept = (t["token"] * math.log(KEPT)).exp()[..., None, None]
    return [kept * state[0] + _features(t["k"])[..., None] * (RATE * t["v"])[..., None, :]]


def read(state: States, q: Tensor) -> Tensor:
    """A^T h_1."""
    h = _features(q)
    for _ in range(SETTLING):
        h = _features(q + h @ state[0])
    return h @ state[0]


def chunk(q: Tensor | None, t: Tokens, state: States) -> tuple[Tensor | None, list[Tensor]]:
    """C tokens at once, and what q [B,H,n,C,dk] reads: as often as its state settles, and once more."""
    g, beta = t["token"] * math.log(KEPT), torch.full_like(t["token"], RATE)

    def reads(h: Tensor | None) -> tuple[Tensor | None, Tensor]:
        return delta_chunk(h, _features(t["k"]), t["v"], g, beta, state[0], corrects=False)

    if q is None:
        return None, [reads(None)[1]]
    h = _features(q)
    for _ in range(SETTLING):
        found, _ = reads(h)
        assert found is not None
        h = _features(q + found)
    out, new = reads(h)
    return out, [new]


def _features(x: Tensor) -> Tensor:
    apart = x - x.mean(-1, keepdim=True)
    return (apart * (apart.square().sum(-1, keepdim=True) + EPSILON).rsqrt()).relu()


def naive(t: Tokens, state: States) -> list[Tensor]:
    """The first formula above; k and v of padding are 0, and its decay is 1."""
    kept = torch.einsum("...,...kv->...kv", 1 - 0.05 * t["token"], state[0])
    return [kept + torch.einsum("...k,...v->...kv", 0.5 * _naive_features(t["k"]), t["v"])]


def naive_read(state: States, q: Tensor) -> Tensor:
    """The second one."""

    def known(h: Tensor) -> Tensor:
        return torch.einsum("...nk,...kv->...nv", h, state[0])

    return known(_naive_features(q + known(_naive_features(q))))


def _naive_features(x: Tensor) -> Tensor:
    apart = x - x.sum(-1, keepdim=True) / x.shape[-1]
    return torch.clamp(apart / torch.sqrt((apart * apart).sum(-1, keepdim=True) + 1e-6), min=0)


RULE = Rule(
    name="ba2016",
    corrects=False,
    states={"A": State(matrix)},
    gates={"token": Gate("one")},
    step=step,
    read=read,
    naive=naive,
    naive_read=naive_read,
    chunk=chunk,
    square=True,
)
