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


@pytest.mark.parametrize(("seconds", "turns"), [(0.0, 5), (14.0, 3), (31.0, 2), (400.0, 2)])
def test_a_slow_machine_takes_fewer_turns(monkeypatch: pytest.MonkeyPatch, seconds: float, turns: int) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    done = 0
    for _ in measure._turns(5):
        clock[0] += seconds
        done += 1
    assert done == turns


def test_times_are_at_the_level_of_the_reference() -> None:
    """Twice as slow a minute makes both twice as slow, and nothing of what is kept."""
    for slow in (1.0, 2.0):
        ours = Times([0.004 * slow, 0.005 * slow, 0.006 * slow], [0.001 * slow], [0.02 * slow])
        reference = Times([0.01 * slow], [0.002 * slow], [0.04 * slow])
        found = measure._figures(ours, reference, LEVEL, 7)
        assert found.decode_ms == pytest.approx(5)
        assert found.decode_p99_ms == pytest.approx(5.98)
        assert [found.read_ms, found.pause_ms] == pytest.approx([1, 15])
        assert found.memory == 7


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
