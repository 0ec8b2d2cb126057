"""Which tokens count more: weights against the formula, written out token by token; losses and gradients with them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sleepc.tasks.lessons import NOTHING
from sleepc.train.losses import kl_sum
from sleepc.train.weighing import MOST, Weighing

N, V = 9, 7


@pytest.fixture
def logits() -> tuple[Tensor, Tensor]:
    """Of a teacher and a program: float64 [1,N,V], far enough apart that some weights are the greatest."""
    generator = torch.Generator().manual_seed(0)
    teacher, student = (4 * torch.randn(1, N, V, generator=generator, dtype=torch.float64) for _ in range(2))
    return teacher, student


LABELS = torch.tensor([0, 1, 2, 3, NOTHING, 6, 5, V, 4])  # one is asked nothing, one is no word of both


def by_hand(teacher: Tensor, student: Tensor, weigh: float) -> list[tuple[float, float]]:
    """Of each token its divergence, and its weight."""
    found = []
    for t, s, label in zip(teacher[0].tolist(), student[0].tolist(), LABELS.tolist(), strict=True):
        p, q = ([math.exp(x) / sum(map(math.exp, each)) for x in each] for each in (t, s))
        kl = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        lead = math.log(p[label] / q[label]) if 0 <= label < V else 0.0
        found.append((kl, 1 + weigh * min(max(lead, 0.0), MOST)))
    return found


@pytest.mark.parametrize("weigh", [0.5, 3.0])
def test_weights_are_those_of_the_formula(logits: tuple[Tensor, Tensor], weigh: float) -> None:
    expected = by_hand(*logits, weigh)
    weights = {weight for _, weight in expected}
    assert {1.0, 1 + weigh * MOST} < weights, "some are the least, some the greatest, some between"
    found = Weighing(LABELS, weigh).weights(*(each[0].log_softmax(-1) for each in logits))
    torch.testing.assert_close(found, torch.tensor([weight for _, weight in expected], dtype=torch.float64))


@pytest.mark.parametrize("rows", [2, 256])
def test_the_loss_is_the_weighted_sum_over_real_tokens(
    logits: tuple[Tensor, Tensor], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sleepc.train.losses.ROWS", rows)
    real = torch.arange(N)[None] % 4 != 1
    found = kl_sum(*logits, real, Weighing(LABELS[real[0]], 2.0))
    expected = sum(kl * weight for (kl, weight), r in zip(by_hand(*logits, 2.0), real[0], strict=True) if r)
    assert found.item() == pytest.approx(expected)


def test_weights_have_no_gradient(logits: tuple[Tensor, Tensor]) -> None:
    teacher, student = logits[0], logits[1].requires_grad_()
    torch.autograd.backward(kl_sum(teacher, student, torch.ones(1, N, dtype=torch.bool), Weighing(LABELS, 2.0)))
    with torch.no_grad():
        p, q = teacher.softmax(-1), student.softmax(-1)
        weights = Weighing(LABELS, 2.0).weights(p.log()[0], q.log()[0])
    found: Any = student.grad
    torch.testing.assert_close(found, weights[None, :, None] * (q - p))
