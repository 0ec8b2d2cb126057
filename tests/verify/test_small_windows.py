"""Windows of one and two tokens: every token, or every other one, is followed by a sleep."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from sleepc.verify.verify import make_streams, verify_program
from tests.families import VOCAB, family


@pytest.mark.parametrize("window", range(1, 12))
def test_no_stretch_between_sleeps_is_longer_than_the_window(window: int) -> None:
    for stream in make_streams(np.arange(7), window):
        edges = [0, *stream.cuts, len(stream.tokens)]
        assert all(0 <= b - a <= window for a, b in pairwise(edges))
        assert len(stream.tokens) - edges[-2] < window


@pytest.mark.parametrize("options", [{}, {"strategy": "insert"}, {"eviction": "hard", "sinks": 0}])
@pytest.mark.parametrize("window", [1, 2])
def test_all_invariants_hold(window: int, options: dict[str, Any]) -> None:
    subject = family("llama", torch.float32)
    step, recipe = subject.convert(window=window, **options)
    tokens = np.random.default_rng(3).integers(0, VOCAB, 60).tolist()
    report = verify_program(step, subject.canonical, recipe, tokens, original=subject.logits)
    assert report.ok, [check for check in report.checks if not check.ok]
