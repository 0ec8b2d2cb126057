"""What the rules of the delta family share: one matrix, decay and correction or not, many tokens at once."""

from __future__ import annotations

import torch
from torch import Tensor

from sleepc.memory.chunk import delta_chunk, delta_step
from sleepc.memory.rule import States, Tokens


def step(t: Tokens, state: States, *, corrects: bool) -> list[Tensor]:
    """One token: S' = exp(g) S + k (x) beta (v - exp(g) S^T k); without a gate g nothing decays."""
    return [delta_step(t["k"], t["v"], _decay(t), t["beta"], state[0], corrects=corrects)]


def chunk(q: Tensor | None, t: Tokens, state: States, *, corrects: bool) -> tuple[Tensor | None, list[Tensor]]:
    """C tokens at once, and what q reads on the way."""
    out, new = delta_chunk(q, t["k"], t["v"], _decay(t), t["beta"], state[0], corrects=corrects)
    return out, [new]


def read(state: States, q: Tensor) -> Tensor:
    """S^T q."""
    return q @ state[0]


def naive_read(state: States, q: Tensor) -> Tensor:
    """S^T q once more, for any leading dimensions."""
    return torch.einsum("...nk,...kv->...nv", q, state[0])


def _decay(t: Tokens) -> Tensor:
    return t["g"] if "g" in t else t["k"].new_zeros(t["k"].shape[:-1])
