"""Text that the teacher writes itself, for users who have none: pieces sampled from its own distribution."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from sleepc.errors import UsageError
from sleepc.runtime.sampling import Sampling
from sleepc.runtime.session import Session
from sleepc.runtime.steps import IntArray, Steps

ROUNDS = 32  # of sampling for one batch, where texts end early


def sampled(
    steps: Steps,
    opening: Sequence[int],
    length: int,
    seed: int,
    batch: int,
    *,
    eos_ids: Collection[int] = (),
    never: Collection[int] = (),
    least: int = 2,
    top_p: float = 1.0,
    start: int = 0,
) -> Iterator[IntArray]:
    """Pieces of at most `length` tokens, without an end: `opening`, then what the teacher draws at temperature 1.

    Where `opening` is empty a text begins with a random word. It ends with a token of `eos_ids` and has none of
    `never`; texts that end before `least` tokens are dropped. `batch` texts are written side by side, and piece n
    depends on `seed`, `batch` and n // batch alone: `start` gives the pieces from that one on without writing the
    earlier batches.

    Raises UsageError, at once, for lengths that do not fit the teacher; later, where its texts end too early.
    """
    given = max(len(opening), 1)
    if not given < length <= steps.window:
        raise UsageError(
            f"the teacher cannot write {length} tokens: it reads {steps.window}, and the first {given} are given",
            fix=f"Give a length from {given + 1} to {steps.window}.",
        )
    if batch < 1 or start < 0 or seed < 0:
        raise UsageError(
            f"batch {batch}, start {start}, seed {seed}", fix="Batches are 1 or more, the others 0 or more."
        )
    Sampling(1.0, top_p=top_p)  # raises for a top_p outside its range
    return _Writer(
        steps, tuple(opening), length, seed, batch, frozenset(eos_ids), frozenset(never), least, top_p
    ).pieces(start)


@dataclass(frozen=True)
class _Writer:
    steps: Steps
    opening: tuple[int, ...]
    length: int
    seed: int
    batch: int
    eos_ids: frozenset[int]
    never: frozenset[int]
    least: int
    top_p: float

    def pieces(self, start: int) -> Iterator[IntArray]:
        """The pieces from number `start` on."""
        skip = start % self.batch
        for group in count(start // self.batch):
            yield from self._group(group)[skip:]
            skip = 0

    def _group(self, group: int) -> list[IntArray]:
        """The `batch` pieces of a group. Rows whose text was too short are written anew, with other random numbers."""
        found: list[IntArray] = []
        for attempt in range(ROUNDS):
            rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(group, attempt)))
            texts = self._write(self.batch - len(found), rng)
            found += [text for text in texts if len(text) >= min(self.least, self.length)]
            if len(found) == self.batch:
                return found
        raise UsageError(
            f"the teacher's own texts mostly end before {self.least} tokens",
            fix="Ask for a smaller least length, or give a text.",
        )

    def _write(self, rows: int, rng: np.random.Generator) -> list[IntArray]:
        """One text for each row, from its beginning to its end."""
        begun = self._begin(rows, rng)
        session = Session(self.steps, rows)
        session.feed(begun)
        steps = session.generate(
            self.length - begun.shape[1],
            temperature=1.0,
            top_p=self.top_p,
            seed=int(rng.integers(1 << 62)),
            stop_ids=self.eos_ids,
            never=self.never,
        )
        written = np.stack(list(steps), axis=1)  # -1 after a row's end
        return [np.concatenate([first, text[text >= 0]]) for first, text in zip(begun, written, strict=True)]

    def _begin(self, rows: int, rng: np.random.Generator) -> IntArray:
        """What stands before the first token that is drawn [rows, n]."""
        if self.opening:
            return np.tile(np.array(self.opening, dtype=np.int64), (rows, 1))
        words = np.setdiff1d(np.arange(self.steps.vocab), sorted(self.eos_ids | self.never))
        return rng.choice(words, (rows, 1)).astype(np.int64)
