"""Families beside those of the whole suite, each captured once: what is promised of every family, in one pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sleepc
from sleepc.errors import Refusal
from sleepc.ir.compare import max_error
from sleepc.ir.interp import Runner
from sleepc.ir.program import ProgramGraphs
from sleepc.runtime.session import Session
from sleepc.verify import invariants
from sleepc.verify.invariants import Bench
from sleepc.verify.memory_values import shaken
from sleepc.verify.oracle import Oracle, parameters_of
from sleepc.verify.original import Original
from sleepc.verify.streams import Stream
from sleepc.verify.verify import make_streams
from tests.conformance.backends import load
from tests.families import MODELS, OTHERS, RECURRENT, VOCAB, WINDOW, family, make_module
from tests.same import assert_same_logits, assert_same_program

# Some of these models compute norms, rotations or experts in float32, also as float64 models.
TOLERANCE = 1e-6
RECURRENT_IN_FLOAT32 = {"qwen3-5": 2e-5}  # and these their recurrences, chunk by chunk
AGAINST_ORIGINAL = 2e-5
SHAPES = ((2, 11), (1, 17))


def canonical_logits(program: ProgramGraphs, tokens: Tensor) -> Tensor:
    """Logits [B,T,V] of a program at level CANONICAL, read by the interpreter."""
    rows, length = tokens.shape
    params = {key: param.materialise() for key, param in program.params.items()}
    values = {**params, "tokens": tokens, "positions": torch.arange(length).expand(rows, length)}
    values |= Runner(program.embed)(values)
    for block in program.layout:
        own = {port: params[key] for port, key in block.params.items()}
        values |= Runner(program.classes[block.cls].wake)({**values, **own})
    logits: Tensor = Runner(program.head)(values)["logits"]
    return logits


@pytest.mark.parametrize("name", MODELS)
def test_capture_of_the_whole_suites_families(name: str) -> None:
    """The rest of what is promised of them is in test_invariants.py."""
    subject = family(name)
    limit = subject.canonical.max_positions or SHAPES[1][1]
    for shape in SHAPES:
        tokens = torch.from_numpy(np.random.default_rng(3).integers(0, VOCAB, (shape[0], min(shape[1], limit))))
        assert max_error(canonical_logits(subject.canonical, tokens), subject.logits(tokens)) <= TOLERANCE


@pytest.mark.parametrize("name", OTHERS)
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
        tolerance = RECURRENT_IN_FLOAT32.get(name, TOLERANCE)
        assert max_error(canonical_logits(canonical, tokens), original(tokens)) <= tolerance

    # exact inside the window, whatever the memories' parameters are
    shaken_program = shaken(program.graphs)
    steps = load(shaken_program)
    stream = Stream(rng.integers(0, VOCAB, WINDOW), (WINDOW,))
    assert invariants.inside(steps, stream, original) <= AGAINST_ORIGINAL

    # several sleeps in any split, against the oracle, padded on either side, saved and loaded in between
    oracle = Oracle(canonical, program.recipe, parameters_of(canonical, shaken_program))
    bench = Bench(steps, oracle, make_streams(rng.integers(0, VOCAB, 3 * WINDOW + 3), WINDOW))
    assert invariants.chunking(bench) <= TOLERANCE
    assert invariants.definition(bench) <= TOLERANCE
    assert invariants.padding(bench) <= TOLERANCE
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
