"""Stage solve: the loss on labels alone, through sleeps whose passes are chosen; gradients of it, and exact resume."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sleepc.api import Program, convert
from sleepc.tasks.lessons import NOTHING
from sleepc.train.parameters import trained_keys
from sleepc.train.pieces import Piece, batch_of
from sleepc.train.student import Student, parts_of
from sleepc.verify.shake import shaken
from tests.families import VOCAB, make_module

WINDOW, LENGTH = 5, 18
HARD = {"window": WINDOW, "sinks": 0, "eviction": "hard"}


@cache
def _converted(options: str) -> Program:
    program = convert(make_module("llama", torch.float64), {**HARD, **json.loads(options)})
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
    return Student({"own": program.graphs}, trained_keys(program.graphs, "all"), None, **options)


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
