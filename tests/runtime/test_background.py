"""Sleeps in the background: what a session does while one runs, and when it fails or is not needed."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from sleepc.errors import SleepcError, UsageError
from sleepc.runtime.chat import Conversation, Manner
from sleepc.runtime.session import Session
from sleepc.runtime.steps import BoolArray
from tests.runtime.fake import FakeState, FakeSteps
from tests.runtime.test_chat import Letters, saying

SOON = 20.0  # seconds, for a machine that is busy
OURS = "sleepc-sleep"


class SlowSteps(FakeSteps):
    """Sleeps that end when they are `released`."""

    def __init__(self) -> None:
        super().__init__(window=4)
        self.released = threading.Event()
        self.threads: list[threading.Thread] = []
        self.error: BaseException | None = None

    def sleep(self, state: FakeState, rows: BoolArray) -> FakeState:
        self.threads.append(threading.current_thread())
        assert self.released.wait(SOON)
        if self.error is not None:
            raise self.error
        return super().sleep(state, rows)


@pytest.fixture
def steps() -> Iterator[SlowSteps]:
    made = SlowSteps()
    yield made
    made.released.set()
    for thread in made.threads:
        if thread is not threading.current_thread():
            thread.join(SOON)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(OURS)]


def deferring(steps: FakeSteps, batch: int = 1) -> Session:
    session = Session(steps, batch)
    session.defers = True
    return session


USES: dict[str, Callable[[Session, Path], object]] = {
    "feed": lambda session, folder: session.feed([5]),
    "sleep": lambda session, folder: session.sleep(),
    "sleep again": lambda session, folder: session.sleep(background=True),
    "generate": lambda session, folder: next(session.generate(1)),
    "snapshot": lambda session, folder: session.snapshot(),
    "restore": lambda session, folder: session.restore(Session(session.steps).snapshot()),
    "select rows": lambda session, folder: session.select_rows([0]),
    "save": lambda session, folder: session.save_state(folder / "state"),
    "stats": lambda session, folder: session.stats,
    "since": lambda session, folder: session.since,
    "position": lambda session, folder: session.position,
}


@pytest.mark.parametrize("use", USES)
def test_every_use_waits_for_the_one_sleep(steps: SlowSteps, tmp_path: Path, use: str) -> None:
    session = deferring(steps)
    session.feed([1, 2, 3, 4])
    assert steps.threads == [], "its last token does not wait"
    assert session.sleep(background=True, at_least=4).tolist() == [0]
    done = threading.Event()

    def used() -> None:
        USES[use](session, tmp_path)
        done.set()

    user = threading.Thread(target=used)
    user.start()
    assert not done.wait(0.02)
    steps.released.set()
    assert done.wait(SOON)
    user.join()
    assert len(steps.threads) == 1
    assert steps.threads[0].name.startswith(OURS)
    assert steps.threads[0] is not user


def test_rows_sleep_whose_window_is_full(steps: SlowSteps) -> None:
    steps.released.set()
    session, plain = deferring(steps, 3), Session(FakeSteps(), 3)
    for each in (session, plain):
        each.feed([[1, 2, 3, 4], [5], [6, 7, 8, 9]])
    assert steps.threads == []
    assert session.sleep([0, 1], background=True, at_least=4).tolist() == [0]
    np.testing.assert_array_equal(session.feed([[1], [2], [3]]), plain.feed([[1], [2], [3]]))
    assert len(steps.threads) == 2, "the last row's sleep came with its next token"
    assert session.stats.sleeps == plain.stats.sleeps == 2
    assert session.sleep([2], background=True, at_least=2).tolist() == []
    with pytest.raises(UsageError, match="at_least 0"):
        session.sleep(at_least=0)


def test_a_row_that_ends_early_may_sleep_within_the_call(steps: SlowSteps) -> None:
    steps.released.set()
    session, plain = deferring(steps, 2), Session(FakeSteps(), 2)
    for each in (session, plain):
        each.feed([[1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7, 8]])
    assert len(steps.threads) == 1
    np.testing.assert_array_equal(session.feed([[1], [2]]), plain.feed([[1], [2]]))
    assert session.stats.sleeps == plain.stats.sleeps == 3


def test_copies_of_rows_defer_as_their_session_does(steps: SlowSteps) -> None:
    steps.released.set()
    for defers in (True, False):
        session = Session(steps, 2)
        session.defers = defers
        session.select_rows([1]).feed([1, 2, 3, 4])
        assert len(steps.threads) == (not defers)


def test_deferring_never_delays_a_token_that_was_read(steps: SlowSteps) -> None:
    session, plain = deferring(steps), Session(FakeSteps())
    session.feed([1, 2])
    plain.feed([1, 2])
    tokens = session.generate(6)
    read = [next(tokens), next(tokens)]  # the fourth token of the window is among them
    assert steps.threads == []
    steps.released.set()
    assert [int(t[0]) for t in (*read, *tokens)] == [int(t[0]) for t in plain.generate(6)]


@pytest.mark.parametrize("error", [SleepcError("broken"), KeyboardInterrupt(), MemoryError()])
def test_what_a_sleep_raises_is_raised_by_the_next_use(steps: SlowSteps, error: BaseException) -> None:
    session = deferring(steps)
    session.feed([1, 2])
    kept = session.snapshot()
    session.feed([3, 4])
    steps.error = error
    session.sleep(background=True)
    steps.released.set()
    with pytest.raises(type(error)):
        session.feed([1])
    with pytest.raises(UsageError, match=r"last call \(sleep\) did not finish"):
        session.feed([1])
    assert session.stats.sleeps == 0
    steps.error = None
    session.restore(kept)
    session.feed([3, 4])
    assert session.stats.sleeps == 1


def test_a_failing_callback_breaks_the_use_that_calls_it(steps: SlowSteps) -> None:
    session = deferring(steps)
    steps.released.set()

    def feed_again(rows: object) -> None:
        session.feed([1])

    session.on_sleep = feed_again
    session.feed([1])
    session.sleep(background=True)
    for _ in range(2):
        with pytest.raises(UsageError, match="did not finish"):
            session.feed([1])


def test_going_back_drops_the_sleep_that_runs(steps: SlowSteps) -> None:
    session = deferring(steps)
    session.feed([1, 2])
    kept = session.snapshot()
    session.feed([3, 4])
    session.sleep(background=True)
    steps.error = SleepcError("nobody needs it")
    steps.released.set()
    session.restore(kept)
    assert (session.since.tolist(), session.stats.sleeps) == ([2], 0)


def test_ctrl_c_while_a_token_waits_changes_nothing(steps: SlowSteps, monkeypatch: pytest.MonkeyPatch) -> None:
    session, plain = deferring(steps), Session(FakeSteps())
    for each in (session, plain):
        each.feed([1, 2, 3, 4])
    session.sleep(background=True)

    def interrupted(futures: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sleepc.runtime.session.wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.feed([5])
    steps.released.set()
    np.testing.assert_array_equal(session.feed([5]), plain.feed([5]))


def test_a_process_ends_after_the_sleep_that_runs() -> None:
    """No thread is left, whatever is still to be asked of the session."""
    code = """
import time
from sleepc.runtime.session import Session
from tests.runtime.fake import FakeSteps
class Slow(FakeSteps):
    def sleep(self, state, rows):
        time.sleep(0.2)
        print("slept", flush=True)
        return super().sleep(state, rows)
session = Session(Slow())
session.feed([1, 2])
session.sleep(background=True)
print("left", flush=True)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout.split(), done.stderr) == (["left", "slept"], "")


def test_a_conversation_that_rests_counts_its_sleeps(tmp_path: Path) -> None:
    def talked(rest: int) -> Conversation:
        session = Session(saying("ok"))
        session.defers = True
        talk = Conversation(session, Letters(), None)
        for text in ("hello", "a", "b"):
            list(talk.say(text, Manner(max_tokens=2)))
            talk.rest(rest)
        return talk

    window = saying("ok").window
    for rest in (1, 2, window):
        talk = talked(rest)
        assert talk.sleeps == talk.session.stats.sleeps, rest
        talk.save(tmp_path / "state")
        again = Conversation(Session(talk.session.steps), Letters(), None)
        again.load(tmp_path / "state")
        assert (again.sleeps, again.turns) == (talk.sleeps, talk.turns)
        talk.undo()
        assert talk.sleeps <= again.sleeps
