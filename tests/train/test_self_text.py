"""The teacher's own text: drawn from its distribution, one document a piece, and piece n without those before it."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest

from sleepc.backends.eager.backend import load
from sleepc.errors import UsageError
from sleepc.runtime.session import Session
from sleepc.runtime.steps import FloatArray, IntArray, Logits, Steps
from sleepc.tasks.programs import full_attention
from sleepc.train.self_text import Writer
from tests.families import VOCAB, family
from tests.runtime.fake import FakeState, FakeSteps

ENDS = tuple(range(50, VOCAB))
LENGTH = 12


@pytest.fixture(scope="module")
def teacher() -> Steps:
    return load(full_attention(family("llama").canonical, LENGTH))


def first(
    steps: Steps, count: int, opening: tuple[int, ...] = (3, 4), seed: int = 5, start: int = 0, **options: Any
) -> list[list[int]]:
    options = {"length": LENGTH, "batch": 3, "eos_ids": ENDS, "least": 6, **options}
    return [piece.tolist() for piece in islice(Writer(steps, opening, seed=seed, **options).pieces(start), count)]


def test_pieces_are_single_documents(teacher: Steps) -> None:
    found = first(teacher, 12)
    for piece in found:
        assert piece[:2] == [3, 4]
        assert not set(piece[:-1]) & set(ENDS)
        assert len(piece) == LENGTH or (piece[-1] in ENDS and len(piece) >= 6)
    assert len({len(piece) for piece in found}) > 1, "no text of these came to its end"
    assert len({tuple(piece) for piece in found}) == len(found)


def test_the_seed_decides_and_start_skips(teacher: Steps) -> None:
    found = first(teacher, 10)
    assert found == first(teacher, 10)
    assert found != first(teacher, 10, seed=6)
    for start in (1, 3, 7):
        assert first(teacher, 10 - start, start=start) == found[start:]


def test_start_reads_no_earlier_batch() -> None:
    steps = FakeSteps(window=LENGTH)
    first(steps, 3, eos_ids=(), start=3_000_000)
    assert len(steps.calls) <= 1 + LENGTH


def test_without_an_opening_texts_begin_anywhere(teacher: Steps) -> None:
    begun = [piece[0] for piece in first(teacher, 24, opening=(), eos_ids=range(1, VOCAB, 2), least=2)]
    assert all(word % 2 == 0 for word in begun), "a text begins with its end"
    assert len(set(begun)) > 8


def test_texts_continue_as_the_teacher_expects() -> None:
    """Its logits lie so far apart that it has no choice."""
    steps = FakeSteps(window=LENGTH)
    (piece,) = first(steps, 1, eos_ids=())
    session = Session(FakeSteps(window=LENGTH))
    session.feed([3, 4])
    assert piece == [3, 4, *(int(step[0]) for step in session.generate(LENGTH - 2))]


class Dice(FakeSteps):
    """Expects the same three words always."""

    LIKELY = np.array([0.6, 0.3, 0.1])

    def wake(
        self, state: FakeState, tokens: IntArray, lengths: IntArray, logits: Logits
    ) -> tuple[FloatArray | None, FakeState]:
        out, state = super().wake(state, tokens, lengths, logits)
        if out is not None:
            out[:] = -np.inf
            out[..., :3] = np.log(self.LIKELY)
        return out, state


@pytest.mark.parametrize(("top_p", "expected"), [(1.0, Dice.LIKELY), (0.8, np.array([2 / 3, 1 / 3, 0]))])
def test_words_come_as_often_as_the_teacher_expects_them(top_p: float, expected: FloatArray) -> None:
    found = first(Dice(window=LENGTH), 200, eos_ids=(), batch=50, top_p=top_p)
    drawn = np.concatenate([piece[2:] for piece in found])
    np.testing.assert_allclose(np.bincount(drawn, minlength=3) / len(drawn), expected, atol=0.04)


def test_texts_that_always_end_early() -> None:
    with pytest.raises(UsageError, match="mostly end before 6 tokens"):
        first(FakeSteps(window=LENGTH), 1, eos_ids=range(11))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"length": LENGTH + 1}, f"reads {LENGTH}, and"),
        ({"length": 2}, f"Give a length from 3 to {LENGTH}"),
        ({"length": 1, "opening": ()}, f"Give a length from 2 to {LENGTH}"),
        ({"batch": 0}, "batch 0"),
        ({"start": -1}, "start -1"),
        ({"seed": -1}, "seed -1"),
        ({"top_p": 0.0}, "top_p"),
    ],
)
def test_what_cannot_be_written_is_said_at_once(options: dict[str, Any], said: str) -> None:
    given: dict[str, Any] = {"opening": (3, 4), "length": 8, "seed": 0, "batch": 2, **options}
    start = given.pop("start", 0)
    with pytest.raises(UsageError, match=said):
        Writer(FakeSteps(window=LENGTH), **given).pieces(start)
