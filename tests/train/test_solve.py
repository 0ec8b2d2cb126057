"""Stage solve: the loss on labels alone, through sleeps whose passes are chosen; gradients of it, and exact resume."""

from __future__ import annotations

import json
import warnings
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sleepc.api import Program
from sleepc.converting import convert
from sleepc.errors import SleepcWarning
from sleepc.memory.parameters import STRENGTHS, key_of
from sleepc.tasks.lessons import NOTHING
from sleepc.train.parameters import trained_keys
from sleepc.train.pieces import Piece, batch_of
from sleepc.train.settings import Settings, passes_of
from sleepc.train.student import Computing, Student, parts_of
from sleepc.verify.memory_values import shaken
from tests.families import VOCAB, make_module

WINDOW, LENGTH = 5, 18
HARD = {"window": WINDOW, "sinks": 0, "eviction": "hard", "consolidation": "recurrent"}


@cache
def _converted(options: str) -> Program:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SleepcWarning)  # it was not trained for its passes
        program = convert(make_module("nanogpt", torch.float64), {**HARD, **json.loads(options)})
    program.graphs = shaken(program.graphs)
    return program


def _program(**options: Any) -> Program:
    return _converted(json.dumps({"passes": 3, **options}))


def _asked(number: int, length: int = LENGTH) -> Piece:
    """A piece with some labels in its last window."""
    rng = np.random.default_rng([number, length])
    labels = np.full(length, NOTHING)
    labels[[-3, -1]] = rng.integers(0, VOCAB, 2)
    return Piece(rng.integers(0, VOCAB, length), labels)


def _student(program: Program, **options: Any) -> Student:
    return Student({"own": program.graphs}, trained_keys(program.graphs, "all"), None, Computing(**options))


def _loss(student: Student, pieces: list[Piece], passes: int | None = None, windows: int = 0) -> Tensor:
    tokens, lengths, labels = map(torch.from_numpy, batch_of(pieces))
    carry, whole = student.begin(len(pieces)), torch.zeros(())
    for part in parts_of(tokens, lengths, labels, WINDOW, windows):
        loss, carry = student.read("solve", "own", part, carry, passes)
        whole = whole + loss
        carry = carry.detached() if windows else carry
    return whole


def _gradients(student: Student, passes: int | None = None, windows: int = 0) -> dict[str, Tensor]:
    torch.autograd.backward(_loss(student, [_asked(0), _asked(1, 14)], passes, windows))
    found = {key: m.grad.clone() for key, m in student.masters.items() if m.grad is not None}
    for master in student.masters.values():
        master.grad = None
    return found


@pytest.mark.parametrize("options", [{}, {"eviction": "sliding", "sinks": 1, "loop": "0:2"}, {"passes": 1}])
def test_the_loss_is_the_surprise_of_a_session_at_the_labels(options: dict[str, Any]) -> None:
    program, pieces, expected = _program(**options), [_asked(0), _asked(1, 14)], 0.0
    for piece in pieces:
        logits = torch.from_numpy(program.session().feed(piece.tokens.tolist(), logits="all")[0])
        assert piece.labels is not None
        asked = piece.labels >= 0
        expected += float(
            functional.cross_entropy(logits[asked], torch.from_numpy(piece.labels[asked]), reduction="sum")
        )
    assert float(_loss(_student(program), pieces).detach()) == pytest.approx(expected, rel=1e-9)


def test_a_part_without_labels_has_no_loss() -> None:
    student, piece = _student(_program()), _asked(0)
    nothing = Piece(piece.tokens, np.full(LENGTH, NOTHING))
    assert float(_loss(student, [nothing]).detach()) == 0
    assert not _loss(student, [nothing]).requires_grad


@pytest.mark.parametrize(
    "name", ["blocks.0.attention.qkv.weight", "blocks.1.mlp.2.weight", key_of(0, STRENGTHS.weight)]
)
def test_gradients_go_through_recurrent_passes(name: str) -> None:
    """Against central differences, along a random direction, with 3 passes."""
    student, pieces = _student(_program()), [_asked(0), _asked(1, 14)]
    key = next(key for key in student.masters if key == name)
    master, h = student.masters[key], 1e-5
    along = torch.randn(master.shape, dtype=master.dtype, generator=torch.Generator().manual_seed(0))
    gradient = _gradients(student)[key]
    start, found = master.detach().clone(), []
    with torch.no_grad():
        for sign in (1, -1):
            master.copy_(start + sign * h * along)
            found.append(float(_loss(student, pieces)))
        master.copy_(start)
    expected = (found[0] - found[1]) / (2 * h)
    assert abs(expected) > 1e-5
    assert float((gradient * along).sum()) == pytest.approx(expected, rel=1e-5)


def test_passes_change_the_loss_and_the_gradient_of_what_runs_again() -> None:
    student = _student(_program())
    own, three, one = (float(_loss(student, [_asked(0)], n).detach()) for n in (None, 3, 1))
    assert own == three != one
    plain = _program(passes=1)
    weights = {key: m.detach() for key, m in student.masters.items()}
    alone = _student(plain)
    for key, master in alone.masters.items():
        master.data.copy_(weights[key])
    assert float(_loss(alone, [_asked(0)]).detach()) == pytest.approx(one, rel=1e-12)


def test_computing_again_and_cutting_with_recurrent_passes() -> None:
    program = _program()
    plain, again = _gradients(_student(program)), _gradients(_student(program, checkpointing=True))
    assert plain.keys() == again.keys()
    for key, gradient in plain.items():
        torch.testing.assert_close(again[key], gradient, rtol=1e-9, atol=1e-12)
    # 4 windows, labels in the last: cut before 4 and 3 windows nothing and something is missing, and before 1 no
    # gradient reaches what only sleeps use.
    cut = {n: _gradients(_student(program), windows=n) for n in (1, 3, 4)}
    key = next(key for key in plain if key.endswith(STRENGTHS.weight.port))
    torch.testing.assert_close(cut[4][key], plain[key], rtol=1e-9, atol=1e-12)
    assert not torch.allclose(cut[3][key], plain[key], rtol=1e-3)
    assert cut[3][key].abs().max() > 0
    assert not cut[1][key].any() if key in cut[1] else True


def test_drawn_passes_are_the_same_for_a_step_whenever_it_is_taken() -> None:
    drawn = [passes_of(Settings(passes="1:4"), n) for n in range(60)]
    assert set(drawn) == {1, 2, 3, 4}
    assert drawn == [passes_of(Settings(passes="1:4"), n) for n in range(60)]
    assert drawn != [passes_of(Settings(passes="1:4", seed=1), n) for n in range(60)]
    assert {passes_of(Settings(passes="2"), n) for n in range(9)} == {2}
    assert passes_of(Settings(), 3) is None
