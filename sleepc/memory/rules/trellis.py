"""The two slot banks of TRELLIS with the identity for phi (arXiv 2512.23852; sleepc/memory/slots.py has the rule): two
delta rules, one read by the other. Their errors are those of a bank that has not decayed yet, as with Titans.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from sleepc.memory import slots
from sleepc.memory.chunk import before, decay_products
from sleepc.memory.rule import Rule, States, Tokens, token_by_token


def moved(z: Tensor, code: Tensor) -> Tensor:
    """z - a."""
    return z - code


def chunk(q: Tensor | None, t: Tokens, state: States) -> tuple[Tensor | None, list[Tensor]]:
    """C tokens at once, and what q [B,H,n,C,dk] reads on the way. With decay per channel token by token, as Titans."""
    if t["g"].dim() == t["k"].dim():
        return token_by_token(RULE, q, t, state)
    (keys, values), (w, size) = state, slots.direction(t["v"])
    keys_left, keys_weights, codes, new_keys = _bank(keys, t["k"], t["code"], t["g"], t["beta"])
    aim = size * t["code_v"]
    left, weights, changes, new_values = _bank(values.mT, w, aim, t["g_v"], t["beta_v"])
    out = None
    if q is not None:
        seen = (q @ t["k"].mT[:, :, None]) * keys_weights[:, :, None]
        asked = slots.slots_of(keys_left[:, :, None] * (q @ keys[:, :, None]) + seen @ codes[:, :, None])
        seen = (asked @ changes.mT[:, :, None]) * weights[:, :, None]
        out = left[:, :, None] * (asked @ values[:, :, None]) + seen @ w[:, :, None]
    return out, [new_keys, new_values.mT]


def _bank(bank: Tensor, w: Tensor, code: Tensor, g: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of a bank [B,H,d,m] and tokens w [B,H,C,d]: what is left of it after every token [B,H,C,1], the share of what a
    token wrote after every later one [B,H,C,C], what tokens write along w [B,H,C,m], and the bank at the end.
    """
    left, weights = g.cumsum(2).exp()[..., None], decay_products(g.cumsum(2)).tril()
    known, strength = before(left, 1.0) * (w @ bank), beta[..., None]
    among = strength * before(weights, 0.0) * (w @ w.mT)
    written = torch.linalg.solve_triangular(among, strength * (code - known), upper=False, unitriangular=True)
    return left, weights, written, left[:, :, -1:] * bank + (weights[:, :, -1, :, None] * w).mT @ written


RULE = Rule(
    name="trellis",
    corrects=True,
    states=slots.STATES,
    gates=slots.GATES,
    step=partial(slots.step, moved=moved),
    read=slots.read,
    naive=partial(slots.naive, moved=lambda z, code: z - code),
    naive_read=slots.naive_read,
    chunk=chunk,
)
