"""Generation: what is yielded has been read, whatever the consumer does."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sleepc.errors import SleepcError, UsageError
from sleepc.runtime.session import Session
from sleepc.runtime.steps import Array
from tests.runtime.fake import FakeSteps

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]


@pytest.fixture
def session() -> Session:
    session = Session(FakeSteps(window=4, vocab=11), batch=3)
    session.feed(PROMPTS)
    return session


def arrays(session: Session) -> dict[str, Array]:
    held = session.steps.to_named_arrays(session._state)
    return {name: array.copy() for name, array in {**held, "last": session._last}.items()}


def assert_same_state(one: Session, other: Session) -> None:
    for name, array in arrays(one).items():
        np.testing.assert_array_equal(array, arrays(other)[name], err_msg=name)


def fed(tokens: list[np.ndarray]) -> Session:
    """A session that was fed the prompts and then the tokens yielded."""
    session = Session(FakeSteps(window=4, vocab=11), batch=3)
    session.feed(PROMPTS)
    session.feed([[int(t[row]) for t in tokens if t[row] >= 0] for row in range(3)])
    return session


@pytest.mark.parametrize("stop", [set(), {2}, {0, 1, 2, 3, 4}, set(range(11))])
def test_every_yielded_token_has_been_read(session: Session, stop: set[int]) -> None:
    tokens = list(session.generate(9, stop_ids=stop))
    assert_same_state(session, fed(tokens))
    for row in range(3):
        line = [int(t[row]) for t in tokens]
        end = next((i for i, token in enumerate(line) if token in stop), len(line))
        assert -1 not in line[:end], "a row goes on to its stop token"
        assert set(line[end + 1 :]) <= {-1}, "and no further"
    assert all((t >= 0).any() for t in tokens)


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_a_consumer_that_stops_early(session: Session, taken: int) -> None:
    iterator = session.generate(9)
    tokens = list(itertools.islice(iterator, taken))
    assert_same_state(session, fed(tokens))  # still open
    del iterator
    assert_same_state(session, fed(tokens))


def test_a_finished_row_keeps_its_state_bit_for_bit(session: Session) -> None:
    before = arrays(session)
    assert len(list(session.generate(9, rows=[1]))) == 9
    after = arrays(session)
    for name in before:
        np.testing.assert_array_equal(before[name][[0, 2]], after[name][[0, 2]])
    assert after["position"][1] == before["position"][1] + 9


@pytest.mark.parametrize("temperature", [0.0, 1e4])
def test_rows_do_not_depend_on_each_other(session: Session, temperature: float) -> None:
    alone = session.select_rows([0, 1, 2])
    together = [t.tolist() for t in session.generate(8, temperature=temperature, seed=3)]
    for row in range(3):
        single = alone.generate(8, temperature=temperature, seed=3, rows=[row])
        assert [int(t[row]) for t in single] == [t[row] for t in together]


def test_the_rows_asked_for_are_fixed_at_the_call(session: Session) -> None:
    mask = np.array([True, False, False])
    iterator = session.generate(2, rows=mask)
    mask[:] = True
    assert [(t >= 0).tolist() for t in iterator] == [[True, False, False]] * 2


def test_seeds(session: Session) -> None:
    def draw(seed: int | None) -> list[list[int]]:
        fork = session.select_rows([0, 0, 0])
        return [t.tolist() for t in fork.generate(12, temperature=1e5, seed=seed)]

    assert draw(1) == draw(1) != draw(2)
    assert draw(None) != draw(None)
    first = draw(1)
    assert any(t[0] != t[1] for t in first), "equal rows draw from streams of their own"


def test_a_saved_generation_continues(session: Session, tmp_path: Path) -> None:
    whole = [t.tolist() for t in session.select_rows([0, 1, 2]).generate(11)]
    first = [t.tolist() for t in itertools.islice(session.generate(11), 5)]
    session.save_state(tmp_path / "s")
    other = Session(FakeSteps(window=4, vocab=11), batch=3)
    other.load_state(tmp_path / "s")
    assert first + [t.tolist() for t in other.generate(6)] == whole


def test_continuing_needs_something_read() -> None:
    session = Session(FakeSteps(), batch=2)
    with pytest.raises(UsageError, match="nothing to continue from in row 0, 1"):
        session.generate(1)
    session.feed([[1], []])
    with pytest.raises(UsageError, match="in row 1"):
        session.generate(1)
    session.feed([[], [1]], logits="none")
    with pytest.raises(UsageError, match="in row 1"):
        session.generate(1)
    iterator = session.generate(2, rows=[0])
    next(iterator)
    session.feed([[1], []], logits="none")
    with pytest.raises(UsageError, match="in row 0"):
        next(iterator)


def test_arguments_are_checked_at_once(session: Session) -> None:
    wrong: dict[str, Any]
    for wrong in ({"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"seed": -1}):
        with pytest.raises(UsageError):
            session.generate(1, **wrong)
    with pytest.raises(UsageError, match="max_tokens -1"):
        session.generate(-1)
    assert list(session.generate(0)) == []
    assert list(session.generate(5, rows=[])) == []


def test_an_interrupt_while_generating(session: Session) -> None:
    steps = session.steps
    assert isinstance(steps, FakeSteps)
    iterator = session.generate(5)
    next(iterator)
    steps.fail_in = "wake"
    with pytest.raises(KeyboardInterrupt):
        next(iterator)
    with pytest.raises(UsageError, match=r"last call \(generate\)"):
        session.generate(1)


def test_logits_that_are_no_numbers_leave_the_session_usable(session: Session) -> None:
    snapshot = session.snapshot()
    session._last[1] = np.nan
    with pytest.raises(SleepcError, match="are not a distribution"):
        next(session.generate(3))
    assert_same_state(session.select_rows([0]), fed([]).select_rows([0]))
    session.restore(snapshot)
    assert len(list(session.generate(3))) == 3
