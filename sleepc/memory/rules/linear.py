"""Linear attention: writes add up (Katharopoulos et al., arXiv 2006.16236)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from sleepc.memory import delta
from sleepc.memory.rule import STRENGTH, Rule, State, States, Tokens, matrix


def naive(t: Tokens, state: States) -> list[Tensor]:
    """S' = S + beta k v^T."""
    return [state[0] + torch.einsum("...k,...v->...kv", t["k"], t["beta"][..., None] * t["v"])]


RULE = Rule(
    name="linear",
    corrects=False,
    states={"S": State(matrix)},
    gates={"beta": STRENGTH},
    step=partial(delta.step, corrects=False),
    read=delta.read,
    naive=naive,
    naive_read=delta.naive_read,
    chunk=partial(delta.chunk, corrects=False),
    affine=True,
)
