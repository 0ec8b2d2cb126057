"""The invariants on the ONNX backend, in float32: every family, every recipe, and every way of writing the files.

A few of each run always; the rest is for `make test-all`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sleepc.backends.onnx.installed import missing_exporter
from sleepc.verify import invariants
from sleepc.verify.streams import Stream
from tests.conformance.backends import ONNX
from tests.conformance.cases import CASES
from tests.conformance.test_invariants import bench, hold_invariants
from tests.families import OTHERS, VOCAB, WINDOW, family

AGAINST_ORIGINAL = 1e-4
STRATEGIES = ("parallel", "insert", "replace")
# Beside llama, gpt2 and gemma2: norms of queries and keys, plain PyTorch, ALiBi, experts with sinks of logits, one key
# for all heads.
EIGHT = ("llama", "gpt2", "gemma2", "qwen3", "nanogpt", "bloom", "gpt-oss", "falcon")
QUICK: list[tuple[str, str, str]] = [
    *(("ort", name, STRATEGIES[i % 3]) for i, name in enumerate(EIGHT) if name not in ("qwen3", "nanogpt", "falcon")),
    *(("ort", "llama", recipe) for recipe in ("recurrent-hard", "recurrent-online", "replace-channel")),
    *(("ort", "gpt2", recipe) for recipe in ("linear", "delta", "insert-sleep", "layer-by-layer")),
    *(("ort", "gemma2", recipe) for recipe in ("gated-channel", "gated-delta-channel", "parallel-online")),
    ("whole", "gemma2", "recurrent-insert"),
    ("portable", "gemma2", "recurrent-replace"),
    ("ort", "llama", "recurrent-settle"),
    ("portable", "gpt2", "recurrent-settle"),
    ("portable", "llama", "parallel-hard"),
    ("portable-columns", "gpt2", "gated-channel"),
]
BROAD: list[tuple[str, str, str]] = [
    *((style, name, recipe) for style in ONNX for name, recipe in CASES),
    *((style, name, "parallel") for style in ONNX for name in OTHERS),
    *(("ort", name, strategy) for name in EIGHT for strategy in STRATEGIES),
]


def cases() -> list[Any]:
    slow = [case for case in dict.fromkeys(BROAD) if case not in QUICK]
    return [*dict.fromkeys(QUICK), *(pytest.param(*case, marks=pytest.mark.slow) for case in slow)]


@pytest.fixture(autouse=True)
def needs_onnx() -> None:
    reason = missing_exporter()
    if reason:
        pytest.skip(reason)


@pytest.mark.parametrize(("style", "name", "recipe"), cases())
def test_invariants(style: str, name: str, recipe: str) -> None:
    hold_invariants(bench(style, name, recipe), ONNX[style].tolerance)


@pytest.mark.parametrize(
    "name", ["llama", "bloom", *(pytest.param(n, marks=pytest.mark.slow) for n in EIGHT if n not in ("llama", "bloom"))]
)
def test_exact_inside_the_window(name: str) -> None:
    """Against the original's own forward."""
    subject, steps = family(name, torch.float32), bench("ort", name, "parallel").steps
    tokens = np.random.default_rng(4).integers(0, VOCAB, WINDOW)
    for count in (1, WINDOW):
        wanted = float(subject.logits(torch.from_numpy(tokens[:count])[None]).abs().max())
        assert invariants.inside(steps, Stream(tokens[:count], (count,)), subject.logits) <= AGAINST_ORIGINAL * wanted
