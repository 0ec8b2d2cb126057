"""The delta rule with decay (Gated Delta Networks, arXiv 2412.06464, equation 10)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from sleepc.memory import delta
from sleepc.memory.rule import DECAY, STRENGTH, Rule, State, States, Tokens, matrix, over_state


def naive(t: Tokens, state: States) -> list[Tensor]:
    """D = e^g S; S' = D + beta k (v - D^T k)^T."""
    kept = over_state(t["g"].exp(), t["k"]) * state[0]
    value = t["v"] - torch.einsum("...kv,...k->...v", kept, t["k"])
    return [kept + torch.einsum("...k,...v->...kv", t["k"], t["beta"][..., None] * value)]


RULE = Rule(
    name="gated_delta",
    corrects=True,
    states={"S": State(matrix)},
    gates={"g": DECAY, "beta": STRENGTH},
    step=partial(delta.step, corrects=True),
    read=delta.read,
    naive=naive,
    naive_read=delta.naive_read,
    chunk=partial(delta.chunk, corrects=True),
    affine=True,
)
