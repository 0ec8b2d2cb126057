"""Arguments that the tests of the operators share: small, seeded, float64 by default."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from hypothesis import settings
from torch import Tensor

RULES = ("linear", "gated", "delta", "gated_delta")
CORRECTING = ("delta", "gated_delta")

small = settings(deadline=None, max_examples=100)
few = settings(deadline=None, max_examples=15)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    made = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=made, dtype=torch.float64).to(dtype)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    made = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=made, dtype=torch.float64)


def unit(x: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / length.clamp_min(1e-30)


@dataclass(frozen=True)
class Memory:
    """Arguments of delta_rule: q, k, v, g, beta and one state matrix."""

    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor
    beta: Tensor
    state: Tensor

    def tokens(self, part: slice) -> Memory:
        return replace(self.map(lambda x: x[:, :, part]), state=self.state)

    def to(self, dtype: torch.dtype, state: torch.dtype) -> Memory:
        wide = self.map(lambda x: x.to(state))
        return replace(wide, q=self.q.to(dtype), k=self.k.to(dtype), v=self.v.to(dtype))

    def map(self, change: Callable[[Tensor], Tensor]) -> Memory:
        q, k, v, g, beta = map(change, self.stream)
        return Memory(q, k, v, g, beta, change(self.state))

    @property
    def stream(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self.q, self.k, self.v, self.g, self.beta

    @property
    def record(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.k, self.v, self.g, self.beta


def memory(
    tokens: int,
    *,
    rows: int = 2,
    heads: int = 4,
    memories: int = 2,
    dk: int = 4,
    dv: int = 3,
    channel: bool = False,
    repeated: bool = False,
    strength: float = 1.0,
    decay: float = 2.0,
    seed: int = 0,
) -> Memory:
    """Unit q and k, beta in (0, strength), g in (-decay, 0); `repeated`: all keys are the first."""
    k = unit(normal(rows, memories, tokens, dk, seed=seed))
    if repeated and tokens:
        k = k[:, :, :1].expand_as(k).contiguous()
    gates = (rows, memories, tokens, dk) if channel else (rows, memories, tokens)
    return Memory(
        unit(normal(rows, heads, tokens, dk, seed=seed + 1)),
        k,
        normal(rows, memories, tokens, dv, seed=seed + 2),
        -decay * uniform(*gates, seed=seed + 3),
        strength * uniform(rows, memories, tokens, seed=seed + 4),
        normal(rows, memories, dk, dv, seed=seed + 5),
    )


def worst(a: Tensor, b: Tensor) -> float:
    """Greatest difference, against the greatest value of b (1 where that is less)."""
    assert a.shape == b.shape, (a.shape, b.shape)
    if not a.numel():
        return 0.0
    return float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1.0))
