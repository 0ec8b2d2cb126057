"""The nine invariants of semantics.md, section 6, in float64: written once, for every backend, family and recipe.

Sessions are compared with each other and with the oracle (sleepc/verify/oracle.py), which shares no rewrite, ring or
clock with them; streams of over three windows, rows on different clocks.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from sleepc.ir.compare import max_error
from sleepc.ir.interp import Runner
from sleepc.ir.program import ProgramGraphs
from sleepc.verify import invariants
from sleepc.verify.invariants import Bench
from sleepc.verify.memory_values import shaken
from sleepc.verify.oracle import Oracle, parameters_of
from sleepc.verify.streams import Stream
from sleepc.verify.verify import make_streams
from tests.conformance.backends import BACKENDS, RUNNABLE, SUBJECTS, runs
from tests.conformance.cases import CASES, EXACT, RECIPES
from tests.families import MODELS, VOCAB, WINDOW, family

TOLERANCE = 1e-9
# transformers' eager attention takes its softmax in float32, also in a float64 model.
AGAINST_ORIGINAL = 2e-5
CAPTURED = 1e-6  # some models compute norms, rotations or experts in float32, also as float64 models
SHAPES = ((2, 11), (1, 17))


@cache
def bench(backend: str, name: str, recipe: str) -> Bench:
    """Steps with shaken memories, the oracle with the same, and three streams."""
    subject = family(name, SUBJECTS[backend].dtype)
    step, made = subject.convert(**RECIPES[recipe])
    program = shaken(step)
    tokens = np.random.default_rng(3).integers(0, VOCAB, 3 * WINDOW + 3)
    oracle = Oracle(subject.canonical, made, parameters_of(subject.canonical, program))
    return Bench(SUBJECTS[backend].load(program), oracle, make_streams(tokens, WINDOW))


@pytest.fixture(params=RUNNABLE)
def backend(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    runs(name)
    return name


@pytest.mark.parametrize(("name", "recipe"), CASES)
def test_invariants(backend: str, name: str, recipe: str) -> None:
    hold_invariants(bench(backend, name, recipe), SUBJECTS[backend].tolerance)


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
def test_the_capture_holds_for_other_shapes(name: str) -> None:
    """Of other families, test_families.py says it."""
    subject = family(name)
    limit = subject.canonical.max_positions or SHAPES[1][1]
    for shape in SHAPES:
        tokens = torch.from_numpy(np.random.default_rng(3).integers(0, VOCAB, (shape[0], min(shape[1], limit))))
        assert max_error(canonical_logits(subject.canonical, tokens), subject.logits(tokens)) <= CAPTURED


def hold_invariants(subject: Bench, tolerance: float) -> None:
    """All but those that need the original."""
    assert invariants.chunking(subject) <= tolerance
    assert invariants.definition(subject) <= tolerance
    assert invariants.padding(subject) <= tolerance
    assert invariants.state_bytes(subject) == 0
    assert invariants.saving(subject) == 0
    assert invariants.permuting(subject) <= tolerance
    assert invariants.lengths(subject) <= tolerance


@pytest.mark.parametrize(("name", "recipe"), EXACT)
def test_exact_inside_the_window(backend: str, name: str, recipe: str) -> None:
    """Against the original's own forward: `parallel` with any parameters of its memories, `insert` as converted."""
    subject = family(name)
    step, made = subject.convert(**RECIPES[recipe])
    program = shaken(step) if made.strategy == "parallel" else step
    tokens = np.random.default_rng(4).integers(0, VOCAB, WINDOW)
    for count in (1, WINDOW - 1, WINDOW):
        stream = Stream(tokens[:count], (count,))
        assert invariants.inside(BACKENDS[backend].load(program), stream, subject.logits) <= AGAINST_ORIGINAL


def test_beyond_the_window_it_is_another_model(backend: str) -> None:
    """Else exactness inside it would prove nothing."""
    subject = family("llama")
    step, _ = subject.convert()
    tokens = np.random.default_rng(4).integers(0, VOCAB, 3 * WINDOW)
    stream = Stream(tokens, (len(tokens),))
    assert invariants.inside(BACKENDS[backend].load(step), stream, subject.logits) > 1e-2


def test_a_layer_whose_own_window_is_small_needs_no_other(backend: str) -> None:
    """Mistral with a window of 5 under a KV window of 8, memories off: the original at any length (decision 1)."""
    from sleepc.verify.memory_values import without_memories

    subject = family("mistral-5")
    step, _ = subject.convert()
    tokens = np.random.default_rng(5).integers(0, VOCAB, 4 * WINDOW)
    stream = Stream(tokens, (len(tokens),))
    assert invariants.inside(BACKENDS[backend].load(without_memories(step)), stream, subject.logits) <= AGAINST_ORIGINAL
