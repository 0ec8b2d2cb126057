"""Two banks of slots, one for keys and one for values, that are written by gradient steps (TRELLIS, arXiv 2512.23852).

Of a bank M [m, d], a token's vector w [d] and its code a [m] a step is one of gradient descent on |phi(M w) - a|² / 2,
after some of the bank was forgotten; it is read in two passes, from a query to slots and from slots to a value:

    M_K' = e^g M_K - beta J(M_K k)^T (phi(M_K k) - a) k^T                J the Jacobian of phi
    M_V' = e^g_v M_V - beta_v J(M_V w)^T (phi(M_V w) - |v| a_v) w^T      w = v / |v|
    y = M_V^T f(M_K q)                                                   f SiLU, then unit length

What the paper leaves open, or reports in two ways:
- m is d_k, so that codes can be orthogonal for as many pairs as there are orthogonal keys.
- The codes a and a_v are learned maps of the layer's input, of unit length. They begin equal: banks that were never
  trained find with the code of a key the value that was written with it.
- A bank takes steps along v / |v|, whose size does not depend on a model's values, and the target is as long as v, so
  what is stored comes back at its own size, which strategy `parallel` mixes with what attention answers.
- f is the method's, not the LayerNorm of SiLU that the reported baseline has: it is no longer than 1, and 0 of an
  empty bank.
- Banks are empty at first, and steps beta and beta_v are in (0, 1): with the identity none goes beyond what it aims at.
- The paper computes the gradients of a chunk where it began, which is another function for every size of chunk. Here
  tokens come one by one, so that no result depends on how a stream is cut; there that was the better of the two.

Banks are held as maps from vectors to codes, M_K [d_k, m], and from codes to values, M_V [m, d_v].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sleepc.memory.rule import DECAY, STRENGTH, Gate, Shape, State, States, Tokens, over_state

EPSILON = 1e-6
Moved = Callable[[Tensor, Tensor], Tensor]
"""J(z)^T (phi(z) - a) of z and a [.., m]."""


def _keys(heads: int, dk: int, dv: int) -> Shape:
    return heads, dk, dk


def _values(heads: int, dk: int, dv: int) -> Shape:
    return heads, dk, dv


STATES = {"M_K": State(_keys), "M_V": State(_values)}
GATES = {
    "g": DECAY,
    "beta": STRENGTH,
    "g_v": Gate("decay", weight="w_a_v", bias="dt_v", rate="log_a_v", again=False, of_keys=False),
    "beta_v": Gate("sigmoid", weight="w_b_v", bias="b_b_v"),
    "code": Gate("code", weight="w_code"),
    "code_v": Gate("code", weight="w_code_v"),
}


def direction(v: Tensor) -> tuple[Tensor, Tensor]:
    """v / |v| and |v| [.., 1]."""
    size = (v.square().sum(-1, keepdim=True) + EPSILON).sqrt()
    return v / size, size


def slots_of(found: Tensor) -> Tensor:
    """f: what the bank of values is asked with, of what a query found in that of keys."""
    return direction(torch.nn.functional.silu(found))[0]


def step(t: Tokens, state: States, *, moved: Moved) -> list[Tensor]:
    """One token [B,H,..]."""
    keys, values = state
    w, size = direction(t["v"])
    values = _written(values.mT, w, moved, size * t["code_v"], t["g_v"], t["beta_v"]).mT
    return [_written(keys, t["k"], moved, t["code"], t["g"], t["beta"]), values]


def _written(bank: Tensor, w: Tensor, moved: Moved, code: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    """A bank [.., d, m] after a step along w [.., d]."""
    change = beta[..., None] * moved((w[..., None, :] @ bank)[..., 0, :], code)
    return over_state(g.exp(), w) * bank - w[..., None] * change[..., None, :]


def read(state: States, q: Tensor) -> Tensor:
    """M_V^T f(M_K q)."""
    keys, values = state
    return slots_of(q @ keys) @ values


def naive(t: Tokens, state: States, *, moved: Moved) -> list[Tensor]:
    """The first two formulas above, bank by bank."""
    keys, values = state
    length = torch.sqrt(torch.sum(t["v"] * t["v"], -1) + 1e-6)
    w = torch.einsum("...v,...->...v", t["v"], 1 / length)
    code = torch.einsum("...m,...->...m", t["code_v"], length)
    change = moved(torch.einsum("...mv,...v->...m", values, w), code)
    kept = torch.einsum("...,...mv->...mv", torch.exp(t["g_v"]), values)
    new_values = kept - torch.einsum("...,...m,...v->...mv", t["beta_v"], change, w)
    change = moved(torch.einsum("...km,...k->...m", keys, t["k"]), t["code"])
    share = t["g"] if t["g"].dim() == t["k"].dim() else t["g"][..., None].expand_as(t["k"])
    kept = torch.einsum("...k,...km->...km", torch.exp(share), keys)
    return [kept - torch.einsum("...,...k,...m->...km", t["beta"], t["k"], change), new_values]


def naive_read(state: States, q: Tensor) -> Tensor:
    """The third one."""
    keys, values = state
    found = torch.einsum("...km,...nk->...nm", keys, q)
    opened = found / (1 + torch.exp(-found))
    asked = opened / torch.sqrt(torch.sum(opened * opened, -1, keepdim=True) + 1e-6)
    return torch.einsum("...mv,...nm->...nv", values, asked)
