"""The invariants on exports of every target, in its dtype: every family, every recipe, every way of writing the files.

A few of each run always; the rest is for `make test-all`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from sleepc.backends.table import find_target
from sleepc.verify import invariants
from sleepc.verify.streams import Stream
from tests.conformance.backends import FORMS, WRITTEN, runs
from tests.conformance.cases import CASES
from tests.conformance.test_invariants import bench, hold_invariants
from tests.families import OTHERS, VOCAB, WINDOW, family

AGAINST_ORIGINAL = 1e-4
STRATEGIES = ("parallel", "insert", "replace")
# Beside llama, gpt2 and gemma2: norms of queries and keys, plain PyTorch, ALiBi, experts with sinks of logits, one key
# for all heads.
EIGHT = ("llama", "gpt2", "gemma2", "qwen3", "nanogpt", "bloom", "gpt-oss", "falcon")
FIRST_FORMS = [next(iter(forms)) for forms in FORMS.values()]
FIRST: list[tuple[str, str]] = [  # for a target's first form
    ("qwen3-5", "parallel"),
    *((name, STRATEGIES[i % 3]) for i, name in enumerate(EIGHT) if name not in ("qwen3", "nanogpt", "falcon")),
    *(("llama", recipe) for recipe in ("recurrent-hard", "recurrent-online", "replace-channel", "recurrent-settle")),
    *(("gpt2", recipe) for recipe in ("linear", "delta", "insert-sleep", "layer-by-layer")),
    *(("gemma2", recipe) for recipe in ("gated-channel", "gated-delta-channel", "parallel-online")),
]
OTHER = [  # for the others in turns
    *(("gemma2", recipe) for recipe in ("recurrent-insert", "recurrent-replace")),
    *(("gpt2", recipe) for recipe in ("gated-channel", "recurrent-settle")),
    ("llama", "parallel-hard"),
]


def quick() -> Iterator[tuple[str, str, str]]:
    """Form, family and recipe of what runs always."""
    for target, forms in FORMS.items():
        if find_target(target).compiles:
            continue
        first, *others = forms
        yield from ((first, *case) for case in FIRST)
        yield from ((others[i % len(others)], *case) for i, case in enumerate(OTHER) if others)


def broad() -> Iterator[tuple[str, str, str]]:
    """The same of all that there is."""
    for target, forms in FORMS.items():
        if find_target(target).compiles:
            yield from ((form, *case) for form in forms for case in FIRST)
            continue
        yield from ((form, *case) for form in forms for case in (*CASES, *((name, "parallel") for name in OTHERS)))
        yield from ((next(iter(forms)), name, strategy) for name in EIGHT for strategy in STRATEGIES)


def cases() -> list[Any]:
    always = list(quick())
    slow = [case for case in dict.fromkeys(broad()) if case not in always]
    return [*always, *(pytest.param(*case, marks=pytest.mark.slow) for case in slow)]


@pytest.mark.parametrize(("form", "name", "recipe"), cases())
def test_invariants(form: str, name: str, recipe: str) -> None:
    tolerance = runs(form).tolerance
    hold_invariants(bench(form, name, recipe), tolerance)


@pytest.mark.parametrize("form", [form for form in WRITTEN if form.values[0] in FIRST_FORMS])
@pytest.mark.parametrize(
    "name", ["llama", "bloom", *(pytest.param(n, marks=pytest.mark.slow) for n in EIGHT if n not in ("llama", "bloom"))]
)
def test_exact_inside_the_window(name: str, form: str) -> None:
    """Against the original's own forward."""
    subject, steps = family(name, runs(form).dtype), bench(form, name, "parallel").steps
    tokens = np.random.default_rng(4).integers(0, VOCAB, WINDOW)
    for count in (1, WINDOW):
        wanted = float(subject.logits(torch.from_numpy(tokens[:count])[None]).abs().max())
        assert invariants.inside(steps, Stream(tokens[:count], (count,)), subject.logits) <= AGAINST_ORIGINAL * wanted
