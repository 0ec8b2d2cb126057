"""The delta rule: a write first takes away what the key returns (DeltaNet, arXiv 2406.06484)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from sleepc.memory import delta
from sleepc.memory.rule import STRENGTH, Rule, State, States, Tokens, matrix


def naive(t: Tokens, state: States) -> list[Tensor]:
    """S' = S + beta k (v - S^T k)^T."""
    value = t["v"] - torch.einsum("...kv,...k->...v", state[0], t["k"])
    return [state[0] + torch.einsum("...k,...v->...kv", t["k"], t["beta"][..., None] * value)]


RULE = Rule(
    name="delta",
    corrects=True,
    states={"S": State(matrix)},
    gates={"beta": STRENGTH},
    step=partial(delta.step, corrects=True),
    read=delta.read,
    naive=naive,
    naive_read=delta.naive_read,
    chunk=partial(delta.chunk, corrects=True),
    affine=True,
)
