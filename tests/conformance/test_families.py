"""Families beside those of the whole suite, each captured once: what is promised of every family, in one pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sleepc
from sleepc.errors import Refusal
from sleepc.ir.compare import max_error
from sleepc.runtime.session import Session
from sleepc.verify import invariants
from sleepc.verify.invariants import Bench
from sleepc.verify.memory_values import shaken
from sleepc.verify.oracle import Oracle, parameters_of
from sleepc.verify.original import Original
from sleepc.verify.streams import Stream
from sleepc.verify.verify import make_streams
from tests.conformance.backends import load
from tests.conformance.test_invariants import AGAINST_ORIGINAL, CAPTURED, SHAPES, canonical_logits
from tests.families import OTHERS, RECURRENT, VOCAB, WINDOW, make_module
from tests.same import assert_same_logits, assert_same_program

LONG = ("zaya", "hrm", "gemma3n")  # experts for all tokens beside three convolutions a layer; six layers; four streams
RECURRENT_IN_FLOAT32 = {"qwen3-5": 2e-5}  # of these the recurrences, chunk by chunk


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in LONG else []) for n in OTHERS])
def test_family(name: str, tmp_path: Path) -> None:
    module = make_module(name)
    original = Original(module)
    program = sleepc.convert(module, {"window": WINDOW, "sinks": 2})
    canonical = program.canonical
    assert canonical is not None
    rng = np.random.default_rng(3)

    # the capture holds for other shapes, beyond windows and chunks of the layers' own
    for shape in SHAPES:
        tokens = torch.from_numpy(rng.integers(0, VOCAB, shape))
        tolerance = RECURRENT_IN_FLOAT32.get(name, CAPTURED)
        assert max_error(canonical_logits(canonical, tokens), original(tokens)) <= tolerance

    # exact inside the window, whatever the memories' parameters are
    shaken_program = shaken(program.graphs)
    steps = load(shaken_program)
    stream = Stream(rng.integers(0, VOCAB, WINDOW), (WINDOW,))
    assert invariants.inside(steps, stream, original) <= AGAINST_ORIGINAL

    # several sleeps in any split, against the oracle, padded on either side, saved and loaded in between
    oracle = Oracle(canonical, program.recipe, parameters_of(canonical, shaken_program))
    bench = Bench(steps, oracle, make_streams(rng.integers(0, VOCAB, 3 * WINDOW + 3), WINDOW))
    assert invariants.chunking(bench) <= CAPTURED
    assert invariants.definition(bench) <= CAPTURED
    assert invariants.padding(bench) <= CAPTURED
    assert invariants.saving(bench) == 0

    # and as an artifact
    loaded = sleepc.load(program.save(tmp_path / "artifact"))
    ids = stream.tokens.tolist() * 2
    assert_same_program(loaded.graphs, program.graphs)
    assert_same_logits(loaded.session().feed(ids), Session(load(program.graphs)).feed(ids))


@pytest.mark.parametrize(("name", "tied"), [("opt", False), ("bloom", False), ("gpt-neox", True)])
def test_the_other_way_to_tie_weights(name: str, tied: bool) -> None:
    """Families whose models usually have the weights of the table in the head, without, and the other way round."""
    module: Any = make_module(name, tie_word_embeddings=tied)
    assert (module.get_input_embeddings().weight is module.get_output_embeddings().weight) == tied
    original = Original(module)
    program = sleepc.convert(module, {"window": WINDOW, "sinks": 2})
    stream = Stream(np.random.default_rng(3).integers(0, VOCAB, WINDOW), (WINDOW,))
    assert invariants.inside(load(shaken(program.graphs)), stream, original) <= AGAINST_ORIGINAL


@pytest.mark.parametrize("name", RECURRENT)
def test_layers_with_a_recurrence_of_their_own_are_refused(name: str) -> None:
    with pytest.raises(Refusal) as caught:
        sleepc.convert(make_module(name, torch.float32), {"window": WINDOW})
    assert caught.value.code == "RECURRENT"
