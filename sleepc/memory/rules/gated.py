"""Linear attention that forgets (Gated Linear Attention, arXiv 2312.06635)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from sleepc.memory import delta
from sleepc.memory.rule import DECAY, STRENGTH, Rule, State, States, Tokens, matrix, over_state


def naive(t: Tokens, state: States) -> list[Tensor]:
    """S' = e^g S + beta k v^T."""
    kept = over_state(t["g"].exp(), t["k"]) * state[0]
    return [kept + torch.einsum("...k,...v->...kv", t["k"], t["beta"][..., None] * t["v"])]


RULE = Rule(
    name="gated",
    corrects=False,
    states={"S": State(matrix)},
    gates={"g": DECAY, "beta": STRENGTH},
    step=partial(delta.step, corrects=False),
    read=delta.read,
    naive=naive,
    naive_read=delta.naive_read,
    chunk=partial(delta.chunk, corrects=False),
    affine=True,
)
