"""What rounding costs on a text: perplexity, and how much less its passages surprise when they are read again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sleepc.backends.eager.backend import BACKEND
from sleepc.backends.onnx.check.quality import AGAIN, CUE, SINGLE, Quality, passages, read_again, read_text
from sleepc.runtime.session import Session
from tests.families import VOCAB, family

TOKENS = np.random.default_rng(0).integers(0, VOCAB, 128)


def logs(logits: Any) -> Any:
    return torch.log_softmax(torch.as_tensor(logits), -1).numpy()


@pytest.mark.parametrize(
    ("window", "vocab", "count", "starts"),
    [
        (128, 49152, 1024, [928, 864, 736, 480]),
        (128, 262144, 1024, [928, 800, 672, 416]),  # pieces of 64 of which every other has logits
        (512, 49152, 1024, [736, 480]),
        (8, 61, 128, [64]),  # four distances in one
        (8, 61, 96, [32]),
        (8, 61, 64, []),
    ],
)
def test_passages_are_as_far_back_as_distances_say(window: int, vocab: int, count: int, starts: list[int]) -> None:
    steps: Any = SimpleNamespace(window=window, vocab=vocab)
    assert passages(steps, count) == starts


def test_passages_are_read_again_behind_the_text_each_by_itself() -> None:
    step, _ = family("llama", torch.float32).convert(window=16, sinks=2)
    steps = BACKEND.steps(step)
    quality = Quality(TOKENS)
    session = read_text(steps, TOKENS, lambda at, x: quality.add(at, x, 2 * x))
    starts = passages(steps, len(TOKENS))
    assert starts == [64, 32]
    again = read_again(session, TOKENS, starts)
    for start, found in zip(starts, again, strict=True):
        stream = np.concatenate([TOKENS, TOKENS[start : start + AGAIN]])
        read = logs(Session(steps).feed(stream[None], logits="all")[0])[len(TOKENS) + CUE - 1 : -1]
        expected = -np.take_along_axis(read, stream[len(TOKENS) + CUE :, None], 1)[:, 0]
        np.testing.assert_allclose(found, expected, atol=1e-5)
    logits = Session(steps).feed(TOKENS[None], logits="all")[0]
    for row, scale in enumerate((2, 1)):  # in float32, and as if by ONNX Runtime
        first = -np.take_along_axis(logs(scale * logits)[:-1], TOKENS[1:, None], 1)[:, 0]
        np.testing.assert_allclose(quality.surprise[row, 1:], first, rtol=5e-6, atol=1e-5)
    assert quality.read == len(TOKENS)
    assert quality.perplexity()["after"] == pytest.approx(np.exp(first.mean()), rel=1e-5)


def test_recall_is_what_passages_surprise_less() -> None:
    quality = Quality(TOKENS)
    quality.surprise[0], quality.surprise[1] = 3.0, 4.0
    quality.surprise[:, 64 : 64 + CUE] = 100  # the cue counts for nothing
    before, after = np.full(AGAIN - CUE, 1.0), np.full(AGAIN - CUE, 3.5)
    assert quality.recall([64, 32], [before, before], [after, after]) == [
        {"tokens": SINGLE, "before": pytest.approx(2.0), "after": pytest.approx(0.5)},
        {"tokens": 64, "before": pytest.approx(2.0), "after": pytest.approx(0.5)},
    ]
