"""What is left of every surprise of a chunk, in a memory with momentum and forgetting: two scans over its tokens.

P' = eta P + u, S' = e^g S + P', for surprises u_j of the chunk's C tokens. A decay per channel has a weight for every
channel, which is not here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sleepc.memory.chunk import decay_products
from sleepc.memory.rule import Tokens


@dataclass(frozen=True)
class Shares:
    """left, come     of the chunk's first S, and of its first P, in S after every token [B,H,C,1]
    weights        of a surprise, in S after every later token [B,H,C,C], 0 before it
    slowed, carried  of the first P [B,H,1,1], and of surprises [B,H,C,1], in P at the end
    """

    left: Tensor
    come: Tensor
    weights: Tensor
    slowed: Tensor
    carried: Tensor

    def ended(self, memory: Tensor, momentum: Tensor, k: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """S and P [B,H,d,e] at the end, of surprises k_j u_j^T, k [B,H,C,d], u [B,H,C,e]."""
        last = self.left[:, :, -1:] * memory + self.come[:, :, -1:] * momentum
        last = last + (self.weights[:, :, -1, :, None] * k).mT @ u
        return last, self.slowed * momentum + (self.carried * k).mT @ u


def shares(t: Tokens) -> Shares:
    """Of tokens with gates g, eta and token [B,H,C]."""
    slowing = t["eta"].clamp(min=torch.finfo(t["eta"].dtype).tiny).log().cumsum(2)
    carried = decay_products(slowing).tril()  # of a surprise, in P at a token [B,H,C,C]
    counted = decay_products(t["g"].cumsum(2)).tril() * t["token"][..., None, :]  # of P at a token, in S at a later one
    left, come = t["g"].cumsum(2).exp()[..., None], counted @ slowing.exp()[..., None]
    return Shares(left, come, counted @ carried, slowing.exp()[:, :, -1:, None], carried[:, :, -1, :, None])
