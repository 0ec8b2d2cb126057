"""How long steps take, in turns with a reference that computes the same. Imports no torch.

A round reads a text in one call, then tokens one by one, sleeps over a whole window, and reads a few more: what a
session does, on any window. The first round of each is not timed, and its logits are compared.
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
ROUNDS = 5
LEAST, PATIENCE = 2, 30.0  # rounds at least, and seconds after which no other begins


@dataclass
class Times:
    """Seconds: of every token that was read alone, of a token of every call, of every sleep."""

    decode: list[float] = field(default_factory=list)
    read: list[float] = field(default_factory=list)
    pause: list[float] = field(default_factory=list)


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
    """Times of `runs` as they are relative to the reference's in the same minutes, at the level of the reference's
    figures of another time (`level`), if there are any: other processes slow down both.
    """
    if runs is reference:
        for _ in _turns(rounds):
            reference.round(reference.times)
        return _figures(reference.times, None, None, reference.memory)
    ours, theirs = Times(), Times()
    for _ in _turns(rounds):
        reference.round(theirs)
        runs.round(ours)
    return _figures(ours, theirs, level, runs.memory).model_copy(update={"error": difference(runs, reference)})


def _turns(rounds: int) -> Iterator[int]:
    """So many, or fewer on a machine that is slow or busy."""
    started = time.monotonic()
    for turn in range(rounds):
        if turn >= LEAST and time.monotonic() - started > PATIENCE:
            return
        yield turn


def difference(runs: Runs, other: Runs) -> float:
    """The largest difference of their logits, as a share of the other's scale. Raises WrongLogits for what is not
    finite.
    """
    if not np.isfinite(runs.logits).all():
        raise WrongLogits("its logits are not finite")
    scale = float(np.abs(other.logits).max()) or 1.0
    return float(np.abs(runs.logits.astype(np.float64) - other.logits).max()) / scale


def _figures(ours: Times, theirs: Times | None, level: Figures | None, memory: int) -> Figures:
    def at(kind: str, name: str, share: float | None = None) -> float:
        """Milliseconds: the median, or a quantile, at the reference's level."""
        own: list[float] = getattr(ours, kind)
        found = 1e3 * (median(own) if share is None else float(np.quantile(own, share)))
        if theirs is None or level is None:
            return found
        other: list[float] = getattr(theirs, kind)
        return found * float(getattr(level, name)) / (1e3 * median(other))

    return Figures(
        decode_ms=at("decode", "decode_ms"),
        decode_p99_ms=at("decode", "decode_ms", 0.99),
        read_ms=at("read", "read_ms"),
        pause_ms=at("pause", "pause_ms"),
        pause_p99_ms=at("pause", "pause_ms", 0.99),
        memory=memory,
    )


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
