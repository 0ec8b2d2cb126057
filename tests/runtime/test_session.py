"""What a session promises besides its numbers: few calls, honest errors, defined states."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sleepc.errors import SleepcError, UsageError
from sleepc.runtime.session import Session
from tests.runtime.fake import FakeState, FakeSteps


@pytest.fixture
def steps() -> FakeSteps:
    return FakeSteps(window=4, vocab=11)


def test_logits_are_asked_for_only_where_a_row_ends(steps: FakeSteps) -> None:
    session = Session(steps, batch=2)
    session.feed([[1] * 10, [1] * 5])
    assert steps.asked == ["none", "last", "last"]
    assert steps.calls == [[4, 4], [4, 1], [2, 0]]
    session.feed([[1, 1], []], logits="none")
    session.feed([[1], []], logits="all")
    assert steps.asked[3:] == ["none", "all"]


def test_nothing_to_read_calls_nothing(steps: FakeSteps) -> None:
    session = Session(steps, batch=2)
    np.testing.assert_array_equal(session.feed([[], []]), np.zeros((2, 11)))
    assert session.feed([[], []], logits="all").shape == (2, 0, 11)
    assert session.feed(np.zeros((2, 0), np.int32), logits="all").shape == (2, 0, 11)
    every = session.feed(np.ones((2, 3), np.int64), np.zeros((2, 3), np.bool_), logits="all")
    np.testing.assert_array_equal(every, np.zeros((2, 3, 11)))
    assert steps.calls == []
    assert Session(steps).feed([]).shape == (1, 11)


def test_result_is_not_the_session_s_own_array(steps: FakeSteps) -> None:
    session = Session(steps)
    session.feed([1])[:] = 0
    first = next(session.generate(1))
    other = Session(steps)
    other.feed([1])
    assert first == next(other.generate(1))


@pytest.mark.parametrize(
    "ids",
    [[1, 2], (1, 2), np.array([1, 2], np.uint8), np.array([[1, 2]], np.int32), [np.array([1, 2])]],
)
def test_forms_of_ids(steps: FakeSteps, ids: Any) -> None:
    np.testing.assert_array_equal(Session(steps).feed(ids), Session(steps).feed([[1, 2]]))


def test_mask_of_zeros_and_ones(steps: FakeSteps) -> None:
    mask = [[0, 1, 1]]
    np.testing.assert_array_equal(Session(steps).feed([[9, 1, 2]], mask), Session(steps).feed([1, 2]))


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        ([[1, 2], [3, 11]], None, r"token id 11 is not in the vocabulary of 11 .*row 1, column 1"),
        ([[1, -1], [3]], None, r"token id -1 .*row 0, column 1"),
        (np.array([[0, 5], [12, 5]]), [[0, 1], [1, 1]], r"token id 12 .*row 1, column 0"),
        ([[2**70], [1]], None, rf"token id {2**70} .*row 0, column 0"),
        (np.array([[2**63], [1]], np.uint64), None, rf"token id {2**63} "),
        ([1, 2], None, r"1 rows, and this session has 2"),
        ([], None, r"1 rows, and this session has 2"),
        ([[1], [2], [3]], None, r"3 rows"),
        ([[1.0], [2.0]], None, r"row 0 .*float64"),
        ([[True], [False]], None, r"row 0 .*bool"),
        ([["a"], [1]], None, r"row 0 .*not token ids"),
        ([[[1]], [[1]]], None, r"row 0 .*2 dimensions"),
        ([1, [2]], None, r"row 0 .*0 dimensions"),
        ("ab", None, r"type str"),
        (np.zeros((2, 1, 1), np.int64), None, r"3 dimensions"),
        ([[1], [2, 3]], [[1, 0], [1, 1]], r"different lengths do not go with a mask"),
        ([[1], [2]], [1, 1], r"mask is int64 \[2\], and the ids are \[2, 1\]"),
        ([[1], [2]], [[2], [1]], r"mask"),
        ([[1], [2]], [[0.5], [1.0]], r"mask is float64"),
    ],
)
def test_ids_that_are_refused_change_nothing(steps: FakeSteps, ids: Any, mask: Any, message: str) -> None:
    session = Session(steps, batch=2)
    session.feed([[1, 2, 3], [4]])
    before = [t.tolist() for t in session.select_rows([0, 1]).generate(9)]
    calls = len(steps.calls)
    with pytest.raises(UsageError, match=f"(?s){message}"):
        session.feed(ids, mask)
    assert session.stats.tokens_read == 4
    assert len(steps.calls) == calls
    assert [t.tolist() for t in session.generate(9)] == before


def test_other_requests_that_are_refused(steps: FakeSteps) -> None:
    session = Session(steps, batch=2)
    bad: Any = "first"
    with pytest.raises(UsageError, match="logits='first'"):
        session.feed([[1], [1]], logits=bad)
    for rows in ([2], [-1], [True], [[0]], [0.0]):
        with pytest.raises(UsageError, match="do not name rows"):
            session.sleep(rows)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="0 rows"):
        Session(steps, batch=0)
    with pytest.raises(UsageError, match="0 rows"):
        session.select_rows([])
    assert session.sleep([]).tolist() == []


def test_sleep_by_hand(steps: FakeSteps) -> None:
    slept: list[list[int]] = []
    session = Session(steps, batch=3, on_sleep=lambda rows: slept.append(rows.tolist()))
    session.feed([[1, 2], [], [3]])
    assert session.sleep([1, 2]).tolist() == [2]
    assert session.sleep().tolist() == [0]
    assert session.sleep().tolist() == []
    assert slept == [[2], [0]]
    session.feed([[1, 2, 3], [1, 2, 3, 4], []])
    assert slept == [[2], [0], [1]]
    assert session.stats.sleeps == 3
    session.feed([[1, 2], [1], [1]])
    assert slept[3:] == [[0]]
    assert session.sleep().tolist() == slept[-1] == [0, 1, 2]
    assert session.stats.sleeps == 7


def test_stats(steps: FakeSteps) -> None:
    session = Session(steps, batch=2)
    session.feed([[1, 2, 3, 4, 5], [1]])
    list(session.generate(4, rows=[1]))
    stats = session.stats
    assert (stats.tokens_read, stats.tokens_generated, stats.sleeps) == (6, 4, 2)
    assert stats.seconds > 0
    held = steps.to_named_arrays(session._state)
    assert stats.state_bytes == sum(array.nbytes for array in held.values())
    stats.sleeps = 99
    assert session.stats.sleeps == 2


def test_select_rows_copies(steps: FakeSteps) -> None:
    session = Session(steps, batch=2)
    session.feed([[1, 2, 3], [4, 5]])
    twice = session.select_rows([1, 0, 1])
    assert twice.since.tolist() == [2, 3, 2]
    answers = [t.tolist() for t in twice.generate(6)]
    assert all(a[0] == a[2] for a in answers)
    assert [[a[1], a[0]] for a in answers] == [t.tolist() for t in session.generate(6)]
    assert session.select_rows(np.array([False, True])).batch == 1


def test_a_snapshot_can_be_restored_more_than_once(steps: FakeSteps) -> None:
    session = Session(steps)
    session.feed([1, 2, 3])
    snapshot = session.snapshot()
    runs = []
    for _ in range(3):
        runs.append([int(t[0]) for t in session.generate(7)])
        session.restore(snapshot)
    assert runs[0] == runs[1] == runs[2]
    with pytest.raises(UsageError, match="another model or batch"):
        Session(steps, batch=2).restore(snapshot)
    with pytest.raises(UsageError, match="another model or batch"):
        Session(FakeSteps()).restore(snapshot)


@pytest.mark.parametrize("place", ["wake", "sleep"])
def test_an_interrupted_session_says_so_until_it_is_restored(steps: FakeSteps, place: str) -> None:
    session = Session(steps)
    session.feed([1, 2])
    snapshot = session.snapshot()
    expected = session.select_rows([0]).feed([3, 4, 5])
    steps.fail_in = place
    with pytest.raises(KeyboardInterrupt):
        session.feed([3, 4, 5])
    steps.fail_in = ""
    for use in (
        lambda: session.feed([1]),
        lambda: session.sleep(),
        lambda: session.generate(1),
        lambda: session.snapshot(),
        lambda: session.select_rows([0]),
        lambda: session.save_state("never"),
    ):
        with pytest.raises(UsageError, match=r"last call \(feed\).*\n.*restore a snapshot"):
            use()
    session.restore(snapshot)
    np.testing.assert_array_equal(session.feed([3, 4, 5]), expected)


def test_a_failing_callback_breaks_the_call_too(steps: FakeSteps) -> None:
    session = Session(steps)

    def feed_again(rows: object) -> None:
        session.feed([1])

    session.on_sleep = feed_again
    with pytest.raises(UsageError, match="did not finish"):
        session.feed([1, 2, 3, 4, 5])
    with pytest.raises(UsageError, match="did not finish"):
        session.feed([1])


def test_backends_that_break_the_contract(steps: FakeSteps, monkeypatch: Any) -> None:
    class NoClock(FakeSteps):
        def signature(self) -> Any:
            return {k: v for k, v in super().signature().items() if k != "slept"}

    with pytest.raises(SleepcError, match=r"None where a state has .*slept"):
        Session(NoClock())

    class WrongLogits(FakeSteps):
        def wake(self, state: FakeState, tokens: Any, lengths: Any, logits: Any) -> Any:
            out, new = super().wake(state, tokens, lengths, "all")
            return out, new

    with pytest.raises(SleepcError, match=r"wake gave float32 \[1, 2, 11\].*\[1, 11\]"):
        Session(WrongLogits()).feed([1, 2])


WRONG = (1.5, "2", True, [2])


@pytest.mark.parametrize("given", [*WRONG, None])
def test_a_number_of_rows_is_a_whole_number(steps: FakeSteps, given: Any) -> None:
    with pytest.raises(UsageError, match=r"batch .* is not a whole number"):
        Session(steps, given)


@pytest.mark.parametrize(
    "ids", [[[1, [2]]], [1, [2]], [[1], 2], [[[1]]], [1.0], ["a"], [True], {"a": 1}, "12", None, 5]
)
def test_ids_are_whole_numbers(steps: FakeSteps, ids: Any) -> None:
    session = Session(steps)
    with pytest.raises(UsageError):
        session.feed(ids)
    session.feed([1])  # nothing has changed


@pytest.mark.parametrize("name", ["max_tokens", "temperature", "top_k", "top_p", "seed", "stop_ids"])
def test_options_of_generation_are_numbers(steps: FakeSteps, name: str) -> None:
    session = Session(steps)
    session.feed([1])
    wrong = {"temperature": ("1", True, [1]), "top_p": ("1", True, [1]), "stop_ids": (2, "2", [1.5], ["2"], [True])}
    for given in wrong.get(name, WRONG):
        with pytest.raises(UsageError):
            list(session.generate(**{"max_tokens": 1, name: given}))  # type: ignore[arg-type]
    assert len(list(session.generate(2, stop_ids={np.int64(12) % 11}, seed=np.int64(3)))) <= 2  # type: ignore[arg-type]
