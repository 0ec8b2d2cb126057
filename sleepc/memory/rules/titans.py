"""The memory of Titans with a matrix: online gradient descent with learned momentum and forgetting (arXiv 2501.00663).

With the error of a token |S^T k - v|², its gradient's factor 2 counted into beta, and 1 - alpha as e^g:

    P' = eta P + beta k (v - S^T k)^T        surprise, and what is left of the past's
    S' = e^g S + P'

The paper's chunks take all gradients where the chunk began, which is another function for every size of chunk. Here a
chunk computes what its tokens compute one by one, so that no result depends on how a stream is cut: unrolled, a
surprise u_j = beta_j (v_j - S_{j-1}^T k_j) is in S_t with the weight c_tj, two scans over the tokens (momentum, then
forgetting), and the u_j solve a triangular system, as for the delta rule (sleepc/memory/chunk.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sleepc.memory.chunk import before
from sleepc.memory.momentum import shares
from sleepc.memory.rule import (
    DECAY,
    STRENGTH,
    Gate,
    Rule,
    State,
    States,
    Tokens,
    matrix,
    over_state,
    token_by_token,
)


def step(t: Tokens, state: States) -> list[Tensor]:
    """One token [B,H,..]; at padding `token` is 0, and P is not added once more."""
    memory, momentum = state
    k, real = t["k"], t["token"][..., None, None]
    miss = t["v"] - (k[..., None, :] @ memory)[..., 0, :]
    momentum = t["eta"][..., None, None] * momentum + k[..., None] * (t["beta"][..., None] * miss)[..., None, :]
    return [over_state(t["g"].exp(), k) * memory + real * momentum, momentum]


def read(state: States, q: Tensor) -> Tensor:
    """S^T q."""
    return q @ state[0]


def chunk(q: Tensor | None, t: Tokens, state: States) -> tuple[Tensor | None, list[Tensor]]:
    """C tokens at once, and what q [B,H,n,C,dk] reads on the way. With decay per channel there is a weight c for every
    channel, which is no product of matrices: then token by token.
    """
    if t["g"].dim() == t["k"].dim():
        return token_by_token(RULE, q, t, state)
    (memory, momentum), k, strength, of = state, t["k"], t["beta"][..., None], shares(t)
    known = before(of.left, 1.0) * (k @ memory) + before(of.come, 0.0) * (k @ momentum)
    among = strength * before(of.weights, 0.0) * (k @ k.mT)
    surprise = torch.linalg.solve_triangular(among, strength * (t["v"] - known), upper=False, unitriangular=True)
    out = None
    if q is not None:
        seen = (q @ k.mT[:, :, None]) * of.weights[:, :, None]
        out = of.left[:, :, None] * (q @ memory[:, :, None]) + of.come[:, :, None] * (q @ momentum[:, :, None])
        out = out + seen @ surprise[:, :, None]
    return out, [*of.ended(memory, momentum, k, surprise)]


def naive(t: Tokens, state: States) -> list[Tensor]:
    """The two formulas above."""
    s, p = state
    known = torch.einsum("...kv,...k->...v", s, t["k"])
    surprise = torch.einsum("...,...k,...v->...kv", t["beta"], t["k"], t["v"] - known)
    new = torch.einsum("...,...kv->...kv", t["eta"], p) + surprise
    share = t["g"] if t["g"].dim() == t["k"].dim() else t["g"][..., None].expand_as(t["k"])
    kept = torch.einsum("...k,...kv->...kv", share.exp(), s)
    return [kept + torch.einsum("...,...kv->...kv", t["token"], new), new]


def naive_read(state: States, q: Tensor) -> Tensor:
    """S^T q once more."""
    return torch.einsum("...nk,...kv->...nv", q, state[0])


RULE = Rule(
    name="titans",
    corrects=True,
    states={"S": State(matrix), "P": State(matrix)},
    gates={
        "g": DECAY,
        "beta": STRENGTH,
        "eta": Gate("sigmoid", weight="w_eta", bias="b_eta", start=-2.0, at_padding=1.0),
        "token": Gate("one"),
    },
    step=step,
    read=read,
    naive=naive,
    naive_read=naive_read,
    chunk=chunk,
)
