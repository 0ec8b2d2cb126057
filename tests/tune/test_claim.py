"""What tuning says of its choice is true where times are noisy."""

from __future__ import annotations

import time

import numpy as np
import pytest

from sleepc.tune.measure import Runs, Times, figures, finals, ratio
from sleepc.tune.record import Entry, Limits
from sleepc.tune.space import Candidate
from sleepc.tuning import Tuning
from tests.tune.test_choose import KEY

DEFAULTS = Candidate(runner="eager")
CHANGES = [Candidate(runner="eager", settings={"piece": n}) for n in range(20)]


class Noisy(Runs):
    """Steps whose every round takes another time, by 10 %."""

    def __init__(self, random: np.random.Generator, took: float) -> None:
        self.random, self.took, self.memory = random, took, 1

    def round(self, times: Times) -> np.ndarray:
        for kind in (times.decode, times.read, times.pause):
            kind.append(self.took * float(np.exp(self.random.normal(0, 0.1))))
        return np.zeros(1)


class Simulated(Tuning):
    """Of changes that take as long as the defaults, but for one of them."""

    def __init__(self, seed: int, faster: float) -> None:
        random = np.random.default_rng(seed)
        self.every = {each.words(): Noisy(random, 1.0) for each in (DEFAULTS, *CHANGES)}
        self.every[CHANGES[7].words()].took = faster
        self.deadline, self.progress, self.tell = time.monotonic() + 99, lambda *_: None, print
        self.limits, self.known, self._held = Limits(), {}, {}
        level = None
        for each in (DEFAULTS, *CHANGES):
            found = figures(self.every[each.words()], self.reference(), level)
            level = level or found
            self._keep(Entry(key=KEY, candidate=each, figures=found))

    def _keep(self, entry: Entry) -> None:
        self.known[entry.candidate.words()] = entry

    def default(self) -> Candidate:
        return DEFAULTS

    def reference(self) -> Runs:
        return self.every[DEFAULTS.words()]

    def runs(self, candidate: Candidate) -> Runs:
        return self.every[candidate.words()]

    def claim(self) -> tuple[Candidate, float]:
        """The choice, and its time of a token relative to the defaults."""
        self._settle()
        best, default = self._best(), self.known[DEFAULTS.words()].figures
        assert best is not None
        assert best.figures is not None
        assert default is not None
        return best.candidate, best.figures.decode_ms / default.decode_ms


@pytest.mark.parametrize(("faster", "least", "most"), [(1.0, 0.95, 1.05), (0.9, 0.85, 0.95)])
def test_the_choice_claims_what_is_true(faster: float, least: float, most: float) -> None:
    """One of twenty is found if it is faster by a tenth; if none is, none seems to be."""
    found = [Simulated(seed, faster).claim() for seed in range(20)]
    assert least <= np.median([claim for _, claim in found]) <= most
    assert faster == 1 or np.mean([each == CHANGES[7] for each, _ in found]) > 0.8


def test_the_defaults_have_a_spread() -> None:
    """Measured alone they vary around their own median, and what is as good as that is no better."""
    noisy = Noisy(np.random.default_rng(0), 1.0)
    assert figures(noisy, noisy, None).spread > 0.02
    level = figures(noisy, noisy, None)
    first, other = finals([noisy, Noisy(np.random.default_rng(1), 1.0)], level, 9.0)
    assert first.decode_ms == level.decode_ms
    assert first.spread > 0.02
    times = Times([1.0, 2.0, 4.0], [1.0, 1.0, 1.0])
    assert (ratio(times, times, "decode").least, ratio(times, times, "decode").most) == (0.5, 2.0)
    assert other.decode_ms == pytest.approx(level.decode_ms, rel=0.1)
