"""Streams that pass the model's last position with `last_position: renumber`: the window is never emptied."""

from __future__ import annotations

from functools import cache
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from sleepc.backends.table import DEFAULT
from sleepc.capturing import capture
from sleepc.errors import UsageError
from sleepc.inspection import first_emptied
from sleepc.runtime.session import Session
from sleepc.verify import invariants
from sleepc.verify.invariants import Bench
from sleepc.verify.memory_values import shaken
from sleepc.verify.oracle import Oracle, parameters_of
from sleepc.verify.streams import Stream
from tests.conformance.backends import SUBJECTS, load, runs
from tests.families import OTHERS, SMALL, SPECIAL, VOCAB, WINDOW, Family, family, make_module

LIMIT = 24  # positions: a window of 8, 2 sinks, and 8 new tokens fit, the fourth window does not
RENUMBER: dict[str, Any] = {"last_position": "renumber"}
RECURRENT: dict[str, Any] = {"consolidation": "recurrent", "passes": 2}
MISTRAL = ("MistralConfig", "MistralForCausalLM", {**SMALL, **SPECIAL, "sliding_window": 13})


def short(name: str, positions: int = LIMIT, dtype: torch.dtype = torch.float64, **changes: Any) -> nn.Module:
    """A model of that many positions, with the weights of any other number."""
    with mock.patch.dict(OTHERS, {"mistral": MISTRAL}):
        size = "n_positions" if name == "gptj" else "max_position_embeddings"
        return make_module(name, dtype, **{size: positions, **changes})


@cache
def subject(name: str, dtype: torch.dtype = torch.float64) -> Family:
    module = short(name, dtype=dtype)
    return Family(module, capture(module))


@pytest.mark.parametrize("name", ["phi3", "gptj", pytest.param("gpt-neox", marks=pytest.mark.slow)])
def test_it_is_the_model_with_more_positions(name: str) -> None:
    """Rotary positions count distances only, so without sinks there is no difference; whole, partial and interleaved
    rotations. Emptied windows, the other way, are another model.
    """
    tokens = np.random.default_rng(3).integers(0, VOCAB, 7 * WINDOW)
    longer = short(name, 512)

    def logits(found: Family, **options: Any) -> Any:
        step, _ = found.convert(sinks=0, **options)
        return Session(load(shaken(step))).feed(tokens, logits="all")

    wanted = logits(Family(longer, capture(longer)))
    scale = np.abs(wanted).max()
    assert np.abs(logits(subject(name), **RENUMBER) - wanted).max() <= 1e-5 * scale
    assert np.abs(logits(subject(name)) - wanted).max() > 1e-2 * scale


CASES: list[tuple[str, dict[str, Any]]] = [
    ("phi3", {}),
    ("phi3", {"consolidation": "recurrent", "passes": 2, "sinks": 1}),
    ("mistral", {}),  # sinks are brought near, too
    ("mistral", {"overrides": [{"layers": "0", "strategy": "replace"}, {"layers": "1", "window": WINDOW + 3}]}),
]


def bench(backend: str, name: str, options: dict[str, Any]) -> Bench:
    """Streams over six and three windows, and less than one; sleeps at uneven distances."""
    with mock.patch.dict(OTHERS, {"mistral": MISTRAL}):
        found = subject(name, SUBJECTS[backend].dtype)
    step, recipe = found.convert(**RENUMBER, **options)
    program = shaken(step)
    ids = np.random.default_rng(9).integers(0, VOCAB, 60)
    streams = (Stream(ids[:50], (8, 16, 20, 28, 36, 44)), Stream(ids[:30], (5, 13, 21, 29)), Stream(ids[:6], ()))
    return Bench(
        SUBJECTS[backend].load(program),
        Oracle(found.canonical, recipe, parameters_of(found.canonical, program)),
        streams,
    )


@pytest.mark.parametrize(("name", "options"), CASES)
def test_invariants_hold_past_the_last_position(name: str, options: dict[str, Any]) -> None:
    made = bench(DEFAULT, name, options)
    tolerance = SUBJECTS[DEFAULT].tolerance
    assert invariants.chunking(made) <= tolerance
    assert invariants.definition(made) <= tolerance
    assert invariants.padding(made) <= tolerance
    assert invariants.state_bytes(made) == 0
    assert invariants.saving(made) == 0
    assert int(made.alone[0].state["offset"][0]) > 0, "the stream is too short to prove anything"


@pytest.mark.parametrize("options", [{}, RECURRENT, pytest.param({**RECURRENT, "sinks": 0}, marks=pytest.mark.slow)])
def test_rotations_in_float32_of_a_model_in_bfloat16(options: dict[str, Any]) -> None:
    """What is kept without positions is wider there than what attention sees. Without experts: near ties would choose
    others.
    """
    module = short("llama4", dtype=torch.bfloat16, moe_layers=[], attention_chunk_size=64)
    canonical = capture(module)
    step, recipe = Family(module, canonical).convert(**RENUMBER, **options)
    tokens = np.random.default_rng(9).integers(0, VOCAB, 4 * WINDOW)
    with torch.no_grad():
        wanted = Oracle(canonical, recipe, parameters_of(canonical, step))(torch.from_numpy(tokens)[None]).logits()[0]
    found = torch.from_numpy(Session(load(step)).feed(tokens, logits="all")[0])
    assert (found - wanted).abs().max() <= 0.05 * wanted.abs().max()


@pytest.mark.parametrize("backend", ["ort", pytest.param("portable", marks=pytest.mark.slow)])
def test_invariants_hold_in_onnx_runtime(backend: str) -> None:
    tolerance = runs(backend).tolerance
    made = bench(backend, "mistral", {})
    assert invariants.chunking(made) <= tolerance
    assert invariants.definition(made) <= tolerance


@pytest.mark.parametrize(("options", "wanted"), [({}, [24]), (RENUMBER, []), ({"eviction": "hard"}, [8, 16, 24])])
def test_emptied_windows_are_counted(options: dict[str, Any], wanted: list[int]) -> None:
    """And where the first one comes is said before: 24 positions, 8 tokens from sleep to sleep, 2 sinks."""
    step, recipe = subject("phi3").convert(**options)
    session, emptied = Session(load(step)), []
    for read in range(1, 3 * WINDOW + 1):
        before = session.stats.emptied
        session.feed([read % VOCAB], logits="none")
        emptied += [read] * (session.stats.emptied - before)
    assert emptied == wanted
    sliding = recipe.eviction == "sliding"
    assert first_emptied(step, recipe) == (wanted[0] if sliding and wanted else None)


def test_where_it_cannot_be_done_it_is_refused() -> None:
    with pytest.raises(UsageError, match="added to the tokens"):
        family("gpt2").convert(**RENUMBER)
    with pytest.raises(UsageError, match="need 26 positions, and the model has 24"):
        subject("phi3").convert(**RENUMBER, overrides=[{"layers": "0", "window": 16}])
    with pytest.raises(UsageError, match="keeps all positions"):
        subject("phi3").convert(**RENUMBER, overrides=[{"layers": "0", "window": "none"}])
