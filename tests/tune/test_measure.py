"""Times are relative to a reference, and do not take for ever."""

from __future__ import annotations

import time

import numpy as np
import pytest

from sleepc.runtime.steps import BoolArray
from sleepc.tune import measure
from sleepc.tune.measure import Runs, Times
from sleepc.tune.record import Figures
from tests.runtime.fake import FakeState, FakeSteps

LEVEL = Figures(decode_ms=10, decode_p99_ms=10, read_ms=2, pause_ms=30, pause_p99_ms=30, memory=1)


@pytest.mark.parametrize(("seconds", "turns"), [(0.0, 5), (9.0, 4), (25.0, 3), (31.0, 2), (400.0, 1)])
def test_a_slow_machine_takes_fewer_turns(monkeypatch: pytest.MonkeyPatch, seconds: float, turns: int) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    done = 0
    for _ in measure._turns(5):
        clock[0] += seconds
        done += 1
    assert done == turns


def test_times_are_at_the_level_of_the_reference() -> None:
    """Twice as slow a minute makes both twice as slow, and nothing of what is kept; nor does a minute of one round."""
    for slow, minute in ((1.0, 1.0), (2.0, 1.0), (1.0, 7.0)):
        each = [slow, slow * minute, slow]
        ours = Times([t * r for r in each for t in (0.004, 0.006)], [0.001 * r for r in each], [0.02 * r for r in each])
        theirs = Times([0.01 * r for r in each for _ in range(2)], [0.002 * r for r in each], [0.04 * r for r in each])
        found = measure._figures(ours, theirs, LEVEL, 7)
        assert [found.decode_ms, found.read_ms, found.pause_ms] == pytest.approx([5, 1, 15])
        assert found.decode_p99_ms > found.decode_ms
        assert found.memory == 7
        assert found.spread == pytest.approx(0)


def test_what_a_ratio_may_be() -> None:
    """The least and the largest of nine are left out, of five none."""
    one = Times([1.0] * 9, [1.0] * 9)
    for count, least, most in ((5, 1.0, 5.0), (9, 2.0, 8.0)):
        ours = Times([float(k) for k in range(1, count + 1)], [1.0] * count)
        found = measure.ratio(ours, Times(one.decode[:count], one.read[:count]), "decode")
        assert (found.value, found.least, found.most) == ((count + 1) / 2, least, most)
    assert found.spread == pytest.approx(1.5)  # 5 / 2 - 1
    few = measure.ratio(Times([3.0, 3.0], [1.0] * 2), Times([1.0, 1.0], [1.0] * 2), "decode")
    assert (few.value, few.spread, few.clear) == (3.0, 1.0, True)
    cases = [(1.11, 1.3, True), (1.05, 1.3, False), (0.8, 0.9, True), (0.8, 0.95, False)]
    assert [measure.Ratio(1.0, least, most).clear for least, most, _ in cases] == [clear for *_, clear in cases]


class Clock:
    """Steps whose round takes what is said, without taking any time."""

    def __init__(self, seconds: list[float]) -> None:
        self.seconds, self.rounds, self.memory = seconds, 0, 1

    def round(self, times: Times) -> None:
        took = self.seconds[self.rounds % len(self.seconds)]
        self.rounds += 1
        for kind in (times.decode, times.read, times.pause):
            kind.append(took)


@pytest.mark.parametrize(
    ("seconds", "rounds", "ratio"),
    [
        ([1.3, 1.5, 1.2], 3, 1.3),  # slower in every round
        ([0.8, 0.7], 3, 0.8),
        ([1.0, 1.01], 5, 1.0),  # known well enough
        ([0.6, 1.4, 1.0], 15, 1.0),  # noise
    ],
)
def test_rounds_until_a_ratio_is_known(seconds: list[float], rounds: int, ratio: float) -> None:
    ours, reference = Clock(seconds), Clock([1.0])
    found = measure.figures(ours, reference, LEVEL)  # type: ignore[arg-type]
    assert (ours.rounds, reference.rounds) == (rounds, rounds)
    assert found.decode_ms == pytest.approx(10 * ratio)


@pytest.mark.parametrize("window", [5, 40])
def test_a_replay_sleeps_over_whole_windows(window: int) -> None:
    steps = NotedSteps(window)
    runs = Runs(steps, range(5), 0)
    steps.slept = []
    pauses, state = runs.replay(4)
    assert [since for since, _ in steps.slept] == [window] * 4
    assert len(pauses) == 4
    assert state == sum(array.nbytes for array in steps.to_named_arrays(steps.new_state(1)).values())


class NotedSteps(FakeSteps):
    """It notes how many tokens every sleep was over, and how many calls came before."""

    def __init__(self, window: int) -> None:
        super().__init__(window)
        self.slept: list[tuple[int, int]] = []

    def sleep(self, state: FakeState, rows: BoolArray) -> FakeState:
        self.slept.append((int(state.arrays["since"][0]), len(self.calls)))
        return super().sleep(state, rows)


@pytest.mark.parametrize("window", [1, 2, 7, 8, 9, 16, 40, 263, 264, 265, 300, 1000])
def test_a_timed_sleep_is_over_a_whole_window(window: int) -> None:
    steps = NotedSteps(window)
    runs = Runs(steps, range(5), 0)
    for again in range(2):  # the first round fills the window, the second takes a copy
        steps.calls, steps.slept, times = [], [], Times()
        assert np.array_equal(runs.round(times), runs.logits), again
        assert (window, measure.ALONE + 1) in steps.slept, "the sleep after a call and the tokens read alone"
        assert {since for since, _ in steps.slept} == {window}
        assert [len(times.decode), len(times.read), len(times.pause)] == [2 * measure.ALONE, 1, 1]
        assert [count for (count,) in steps.calls] == [runs.call, *[1] * 2 * measure.ALONE]
