"""Keys that are bound again (Schlag, Irie, Schmidhuber, arXiv 2102.11174, section 6.1, setting 2): with DPFP a delta
rule learns to return the last value of a key, and a sum cannot.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sleepc.memory.features import FEATURES
from sleepc.ops import functional
from tests.ops.cases import unit

KEYS, PAIRS, WIDTH, ROWS, STEPS = 20, 40, 16, 32, 1000


def batch(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keys and values [B,T], drawn with replacement, a key that was told [B], and the value told last for it [B]."""
    keys, values = (torch.randint(KEYS, (ROWS, PAIRS), generator=generator) for _ in range(2))
    asked = keys.gather(1, torch.randint(PAIRS, (ROWS, 1), generator=generator))
    last = PAIRS - 1 - (keys.flip(1) == asked).int().argmax(1, keepdim=True)
    return keys, values, asked[:, 0], values.gather(1, last)[:, 0]


class Reader(nn.Module):
    """Keys are made of what is told, queries of what is asked; values are one-hot."""

    def __init__(self, rule: str) -> None:
        super().__init__()
        self.rule, self.words = rule, nn.Embedding(KEYS, WIDTH)
        self.key, self.query = nn.Linear(WIDTH + KEYS, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.strength = nn.Linear(WIDTH + KEYS, 1)

    def forward(self, keys: Tensor, values: Tensor, asked: Tensor) -> Tensor:
        """What is returned for what is asked [B,KEYS]."""
        hot = nn.functional.one_hot(values, KEYS).float()
        told = torch.cat([self.words(keys), hot], -1)
        features = FEATURES["dpfp1"].naive
        k, q = unit(features(self.key(told))), unit(features(self.query(self.words(asked))))
        beta = self.strength(told)[..., 0].sigmoid()[:, None]
        empty = hot.new_zeros(len(keys), 1, k.shape[-1], KEYS)
        still, told_once = torch.zeros_like(beta), (k[:, None], hot[:, None])
        state = functional.replay(*told_once, still, beta, [empty], rule=self.rule, passes=1, written=False)
        return functional.delta_rule_read(q[:, None, None], state, rule=self.rule, scale=1.0)[:, 0, 0]


def learned(rule: str) -> float:
    """The loss after training, over what was not trained on."""
    torch.manual_seed(0)
    model, generator = Reader(rule), torch.Generator().manual_seed(1)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(STEPS):
        keys, values, asked, wanted = batch(generator)
        found = model(keys, values, asked)
        loss = (found - nn.functional.one_hot(wanted, KEYS)).square().sum(-1).mean() / 2
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return sum(losses[-50:]) / 50


@pytest.mark.slow
def test_only_what_corrects_can_bind_a_key_again() -> None:
    delta, total = learned("delta"), learned("linear")
    assert delta < 0.02
    assert total > 10 * delta
