"""The two slot banks of TRELLIS with SiLU for phi (arXiv 2512.23852; sleepc/memory/slots.py has the rule). Its steps
are not affine, so that many tokens have no faster form than one after another. Codes below -0.28 are never reached.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from sleepc.memory import slots
from sleepc.memory.rule import Rule


def moved(z: Tensor, code: Tensor) -> Tensor:
    """SiLU'(z) (SiLU(z) - a)."""
    s = z.sigmoid()
    return s * (1 + z * (1 - s)) * (z * s - code)


def _naive_moved(z: Tensor, code: Tensor) -> Tensor:
    falling = torch.exp(-z)
    slope = 1 / (1 + falling) + z * falling / (1 + falling) ** 2
    return slope * (z / (1 + falling) - code)


RULE = Rule(
    name="trellis_silu",
    corrects=True,
    states=slots.STATES,
    gates=slots.GATES,
    step=partial(slots.step, moved=moved),
    read=slots.read,
    naive=partial(slots.naive, moved=_naive_moved),
    naive_read=slots.naive_read,
)
