"""What both backends read, and what is kept of it: logits, and the state at the end of each check."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sleepc.runtime.session import Session, Snapshot
from sleepc.runtime.steps import Array, FloatArray, IntArray, Steps

LONG = 512  # windows up to here are read whole
SHORT = 64  # tokens between forced sleeps, if a window is longer
FEW = 12  # tokens that are read one by one
KEPT = 32 << 20  # bytes of logits that are kept of a check
AT_ONCE = 24 << 20  # bytes of logits of one call
LARGE = 1 << 16  # words of a vocabulary from which on its head is most of the work


@dataclass
class Found:
    """Of one check: logits [n, V] of tokens in the order of reading, and the state's arrays."""

    logits: FloatArray
    state: dict[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Shelf:
    """Keeps what was read on disk: with a large vocabulary it would take as much memory as the model."""

    folder: Path

    def put(self, name: str, found: Found) -> None:
        """Keep it."""
        arrays = {f"state.{key}": value for key, value in found.state.items()}
        np.savez(self._file(name), logits=found.logits, **arrays)  # type: ignore[arg-type]

    def take(self, name: str) -> Found:
        """What was put, once."""
        found = self.look(name)
        self._file(name).unlink()
        return found

    def look(self, name: str) -> Found:
        """What was put, which stays."""
        with np.load(self._file(name)) as file:
            arrays = {key: file[key] for key in file.files}
        logits = arrays.pop("logits")
        return Found(logits, {key.removeprefix("state."): value for key, value in arrays.items()})

    def _file(self, name: str) -> Path:
        return self.folder / f"{name.replace(' ', '-')}.npz"


Other = tuple[str, Steps]
"""Steps that differ in how a sleep consolidates, and what they are called."""


@dataclass
class StepsReader:
    """Reads `tokens` with steps, check by check, and hands on what each gave.

    The stream is `2 * span` tokens and a few more, and sleeps twice: `span` is the window or, if that is long, SHORT
    tokens, after which a sleep is forced.
    """

    steps: Steps
    tokens: IntArray
    hand_on: Callable[[str, Found], None]

    @property
    def span(self) -> int:
        """Tokens from sleep to sleep."""
        return self.steps.window if self.steps.window <= LONG else SHORT

    def read_all(self, others: Sequence[Other], progress: Callable[[float], None]) -> None:
        """Every check, in this order."""
        work = [self.stream, self.one_by_one, self.few_at_once, self.prompts, self.repeated, self.rows]
        for i, check in enumerate(work):
            progress(i / (len(work) + 1))
            check()
        self.sleeps(others)

    def keep(self, check: str, logits: Sequence[FloatArray], session: Session | None = None) -> None:
        """Hand on what a check gave: of very many logits, evenly spaced ones."""
        all_of = [x.reshape(-1, x.shape[-1]) for x in logits]
        count, width = sum(map(len, all_of)), self.steps.vocab
        every = max(-(-count * width * 4 // KEPT), 1)
        state = self.steps.to_named_arrays(session.snapshot().state) if session else {}
        self.hand_on(check, Found(np.concatenate([x[::every] for x in all_of]), state))

    def stream(self) -> None:
        """Prefill to the first sleep, on across two sleeps, and then token by token."""
        session, span = Session(self.steps), self.span
        self.keep("prefill", self._feed(session, 0, span))
        logits = []
        for start in (span, 2 * span):
            self._force_sleep(session)
            logits += self._feed(session, start, start + span if start == span else start + FEW)
        self.keep("across two sleeps", logits, session)
        self.keep("prefill, then decode", self._one_by_one(session, 2 * span + FEW, 2 * span + 2 * FEW), session)

    def one_by_one(self) -> None:
        """Decode from an empty state."""
        session = Session(self.steps)
        self.keep("decode", self._one_by_one(session, 0, FEW), session)

    def few_at_once(self) -> None:
        """Calls that are shorter than a convolution's tail, and than what they follow."""
        session, logits, at = Session(self.steps), [], 0
        for count in (2, 1, 2, 2, 3, 1):
            logits.append(session.feed(self.tokens[None, at : at + count], logits="all")[0])
            at += count
        self.keep("calls of one, two and three tokens", logits, session)

    def prompts(self) -> None:
        """Calls of several tokens of which the logits of the last are asked for, as of a prompt: whole chunks, parts of
        one, and across a sleep.
        """
        session, logits, at = Session(self.steps), [], 0
        for count in (FEW, 3, 16):
            logits.append(session.feed(self.tokens[None, at : at + count]))
            at += count
        self.keep("a prompt's last token", logits, session)

    def repeated(self) -> None:
        """One token again and again."""
        session = Session(self.steps)
        token = self.tokens[:1]
        logits = [session.feed(np.repeat(token, FEW)[None], logits="all"), session.feed(token[None])]
        self.keep("one token repeated", logits, session)

    def rows(self) -> None:
        """Three rows that sleep at different times, with padding: forced, and each at the end of its window."""
        session = Session(self.steps, 3)
        logits = [self._padded(session, (7, 4, 0), 0)]
        session.sleep([1])
        logits.append(self._padded(session, (1, 5, 3), 20))
        session.sleep([0, 2])
        logits.append(self._padded(session, (2, 0, 4), 40))
        self.keep("three rows, forced sleeps", logits, session)
        one, before = Session(self.steps), max(self.span - 2, 1)
        one.feed(self.tokens[None, :before], logits="none")
        session = one.select_rows([0, 0, 0])
        logits = [self._padded(session, (1, 2, 5), before), self._padded(session, (3, 0, 1), before + 5)]
        self.keep("three rows, asleep one after the other", logits, session)

    def sleeps(self, others: Sequence[Other]) -> None:
        """One sleep with each of the `others`, from the state before it, and a few tokens after it."""
        session = Session(self.steps)
        session.feed(self.tokens[None, : max(self.span - 1, 1)], logits="none")
        before = session.snapshot()
        for name, steps in others:
            self.hand_on(name, _slept(steps, before, self.tokens[:FEW]))

    def _feed(self, session: Session, start: int, end: int) -> list[FloatArray]:
        """Logits [n, V] of tokens `start` to `end`: of all in one call or, if the vocabulary is too large for that,
        of as many as two calls have room for, the first and the last ones; those between are only read.
        """
        most = max(AT_ONCE // (4 * self.steps.vocab), 8)
        if end - start <= 2 * most:
            places = range(start, end, most)
            return [session.feed(self.tokens[at : min(at + most, end)][None], logits="all")[0] for at in places]
        first = session.feed(self.tokens[None, start : start + most], logits="all")[0]
        session.feed(self.tokens[None, start + most : end - most], logits="none")
        return [first, session.feed(self.tokens[None, end - most : end], logits="all")[0]]

    def _one_by_one(self, session: Session, start: int, end: int) -> list[FloatArray]:
        """Logits [1, V] of single tokens; of a large vocabulary of every third, and the last."""
        found = []
        for at in range(start, end):
            if self.steps.vocab < LARGE or (end - 1 - at) % 3 == 0:
                found.append(session.feed(self.tokens[None, at : at + 1]))
            else:
                session.feed(self.tokens[None, at : at + 1], logits="none")
        return found

    def _padded(self, session: Session, lengths: Sequence[int], start: int) -> FloatArray:
        """Rows of these lengths, padded before and behind; rows read different tokens."""
        mask = np.zeros((len(lengths), max(lengths) + 1), np.bool_)
        ids = np.zeros(mask.shape, np.int64)
        for row, count in enumerate(lengths):
            at = slice(row % 2, row % 2 + count)
            mask[row, at] = True
            ids[row, at] = self.tokens[start + 3 * row : start + 3 * row + count]
        return session.feed(ids, mask, logits="all")

    def _force_sleep(self, session: Session) -> None:
        if self.span != self.steps.window:
            session.sleep()


def tokens_needed(window: int) -> int:
    """How many tokens a reading takes."""
    return max(2 * (window if window <= LONG else SHORT) + 2 * FEW, 60)


def _slept(steps: Steps, before: Snapshot, tokens: IntArray) -> Found:
    arrays = before.steps.to_named_arrays(before.state)
    state = steps.sleep(steps.from_named_arrays(arrays), np.ones(1, np.bool_))
    arrays = steps.to_named_arrays(state)
    count = min(len(tokens), steps.window)
    logits, _ = steps.wake(state, tokens[None, :count], np.array([count]), "all")
    assert logits is not None
    return Found(logits[0], arrays)
