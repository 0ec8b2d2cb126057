"""How long steps take, in turns with others that compute the same. Imports no torch.

A round reads a text in one call, then tokens one by one, sleeps over a whole window, and reads a few more: what a
session does, on any window. The first round of each is not timed, and its logits are compared. Of two that take turns,
every round gives a ratio: what slows down both of its halves is not in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from sleepc.runtime.session import Session, Snapshot
from sleepc.runtime.steps import FloatArray, Steps
from sleepc.tune.record import Figures, WrongLogits

CALL = 256  # tokens of the call at most: if the window is shorter, those that fill it with those that are read alone
ALONE = 8  # tokens that are read one by one before the sleep, and after it
ROUNDS = 15
FINAL = 25  # turns of the last measurement, where a claim is made
LEAST, PATIENCE = 3, 30.0  # rounds at least, and seconds after which no other begins: twice as many if they are fewer
EXACT = 0.015  # spread of a ratio at which no more rounds are needed
CLEAR = 1.1  # nor are they where every ratio of a token, or of reading, is farther than this from 1
SLEEPS = 25  # of a replay


@dataclass
class Times:
    """Seconds: of every token that was read alone, of a token of every call, of every sleep."""

    decode: list[float] = field(default_factory=list)
    read: list[float] = field(default_factory=list)
    pause: list[float] = field(default_factory=list)

    def of_rounds(self, kind: str) -> list[float]:
        """The median of each round, of which there are as many as calls."""
        found: list[float] = getattr(self, kind)
        size = len(found) // len(self.read)
        return [median(found[at : at + size]) for at in range(0, len(found), size)]


@dataclass(frozen=True)
class Ratio:
    """The median of ratios of rounds, and an interval that has the true one in 95 of 100 cases if there are nine rounds
    or more, in 94 if there are five, in 75 if there are three.
    """

    value: float
    least: float
    most: float

    @property
    def spread(self) -> float:
        """How far it may be off, as a share."""
        return max(self.most / self.value, self.value / self.least) - 1

    @property
    def clear(self) -> bool:
        """Is it certainly far from 1?"""
        return self.least > CLEAR or self.most < 1 / CLEAR


class Runs:
    """Steps that are measured; `memory` is what they hold, in bytes."""

    def __init__(self, steps: Steps, tokens: Sequence[int], memory: int) -> None:
        self.steps, self.memory = steps, memory
        self.call = call_of(steps.window)
        self.tokens = [int(t) for t in np.resize(np.asarray(tokens, np.int64), self.call + 2 * ALONE)]
        self._filled: Snapshot | None = None
        self.times, self.logits = Times(), self.round(Times())

    def round(self, times: Times) -> FloatArray:
        """Read it all from the beginning; the logits of every token that was read alone [n, V]."""
        session = Session(self.steps)
        session.defers = True  # the sleep after the window's last token is for us to time
        first, alone = self.tokens[: self.call], self.tokens[self.call :]
        times.read.append(_timed(lambda: session.feed(first)) / len(first))
        self._fill(session)
        found = [self._alone(session, token, times.decode) for token in alone[:ALONE]]
        times.pause.append(_timed(session.sleep))
        found += [self._alone(session, token, times.decode) for token in alone[ALONE:]]
        return np.concatenate(found)

    def replay(self, sleeps: int = SLEEPS) -> tuple[list[float], int]:
        """Read on and on, as a session does: seconds of every sleep over a whole window, of which there are so many or
        fewer on a slow machine, and the most bytes that the state had.
        """
        session, window, most = Session(self.steps), self.steps.window, 0
        session.defers = True
        text, pauses = np.resize(self.tokens, window).tolist(), []
        for _ in _turns(sleeps):
            for at in range(0, window, self.call):
                session.feed(text[at : at + self.call], logits="none")
            pauses.append(_timed(session.sleep))
            state = self.steps.to_named_arrays(session.snapshot().state)
            most = max(most, sum(array.nbytes for array in state.values()))
        return pauses, most

    def _fill(self, session: Session) -> None:
        """Let the window lack just the tokens that are read alone: a long one is read once, and then a copy."""
        if self.call + ALONE >= self.steps.window:
            return
        if self._filled is None:
            rest = np.resize(self.tokens[: self.call], self.steps.window - ALONE - self.call).tolist()
            for at in range(0, len(rest), self.call):
                session.feed(rest[at : at + self.call], logits="none")
            self._filled = session.snapshot()
        else:
            session.restore(self._filled)

    def _alone(self, session: Session, token: int, times: list[float]) -> FloatArray:
        session.sleep(at_least=self.steps.window)  # the time of a token has no sleep in it
        started = time.perf_counter()
        out = session.feed([token])
        times.append(time.perf_counter() - started)
        return out


def call_of(window: int) -> int:
    """How many tokens a round reads in one call: the window is full when it sleeps, if CALL is enough for that."""
    if window > ALONE:
        return min(CALL, window - ALONE)
    return -ALONE % window or window


def figures(runs: Runs, reference: Runs, level: Figures | None, rounds: int = ROUNDS) -> Figures:
    """Times of `runs` as they are relative to the reference's in the same rounds, at the level of the reference's
    figures of another time (`level`), if there are any: other processes slow down both.
    """
    ours, theirs = Times(), Times()
    if runs is reference:
        for _ in _turns(rounds):
            runs.round(ours)
        return _figures(ours, ours, None, runs.memory)
    for turn in _turns(rounds):
        for each, times in ((runs, ours), (reference, theirs))[:: 1 if turn % 2 else -1]:
            each.round(times)
        if turn + 1 >= LEAST and _enough(ours, theirs):
            break
    return _figures(ours, theirs, level, runs.memory)


def finals(every: Sequence[Runs], level: Figures | None, seconds: float, rounds: int = FINAL) -> list[Figures]:
    """Times of all in the same turns, relative to those of the first, at its `level` as in `figures`. No turn begins
    after so many seconds, or PATIENCE if that is more.
    """
    times = [Times() for _ in every]
    for turn in _turns(rounds, max(seconds, PATIENCE)):
        first = turn % len(every)  # each is early in some turns, and late in others
        for at in (*range(first, len(every)), *range(first)):
            every[at].round(times[at])
        if turn + 1 >= ROUNDS and all(_exact(each, times[0]) for each in times[1:]):
            break
    return [_figures(each, times[0], level, runs.memory) for each, runs in zip(times, every, strict=True)]


def _turns(rounds: int, patience: float = PATIENCE) -> Iterator[int]:
    """So many, or fewer on a machine that is slow or busy: there a round of two threads may take minutes."""
    started = time.monotonic()
    for turn in range(rounds):
        if turn and time.monotonic() - started > (patience if turn >= LEAST else 2 * patience):
            return
        yield turn


def _enough(ours: Times, theirs: Times) -> bool:
    """Is one of both certainly faster, or are both ratios known well enough?"""
    found = ratio(ours, theirs, "decode"), ratio(ours, theirs, "read")
    return any(each.clear for each in found) or (len(ours.read) >= 5 and _exact(ours, theirs))


def _exact(ours: Times, theirs: Times) -> bool:
    return all(ratio(ours, theirs, kind).spread <= EXACT for kind in ("decode", "read"))


def ratio(ours: Times, theirs: Times, kind: str) -> Ratio:
    """Of times of a kind (a field of Times) in the same rounds. The interval is that of a median by order statistics,
    which assume nothing of how ratios are distributed: it leaves out some of the least and as many of the largest. Of
    fewer than LEAST rounds it is from half to twice as much. What is given twice is relative to its own median.
    """
    others = theirs.of_rounds(kind)
    if ours is theirs:
        others = [median(others)] * len(others)
    found = sorted(a / b for a, b in zip(ours.of_rounds(kind), others, strict=True))
    if len(found) < LEAST:
        return Ratio(median(found), median(found) / 2, median(found) * 2)
    out = max(int(len(found) / 2 - 0.98 * len(found) ** 0.5), 0)
    return Ratio(median(found), found[out], found[-1 - out])


def difference(runs: Runs, other: Runs) -> float:
    """The largest difference of their logits, as a share of the other's scale. Raises WrongLogits for what is not
    finite.
    """
    if not np.isfinite(runs.logits).all():
        raise WrongLogits("its logits are not finite")
    scale = float(np.abs(other.logits).max()) or 1.0
    return float(np.abs(runs.logits.astype(np.float64) - other.logits).max()) / scale


def _figures(ours: Times, theirs: Times, level: Figures | None, memory: int) -> Figures:
    ratios = {kind: ratio(ours, theirs, kind) for kind in ("decode", "read", "pause")}

    def at(kind: str) -> float:
        """Milliseconds at the reference's level, or as they were."""
        if level is None:
            return 1e3 * median(ours.of_rounds(kind))
        return ratios[kind].value * float(getattr(level, f"{kind}_ms"))

    def slowest(kind: str) -> float:
        own: list[float] = getattr(ours, kind)
        return at(kind) * float(np.quantile(own, 0.99)) / median(own)

    return Figures(
        decode_ms=at("decode"),
        decode_p99_ms=slowest("decode"),
        read_ms=at("read"),
        pause_ms=at("pause"),
        pause_p99_ms=slowest("pause"),
        memory=memory,
        spread=max(ratios["decode"].spread, ratios["read"].spread),
    )


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
