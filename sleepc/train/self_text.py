"""Text that the teacher writes itself, for users who have none: pieces sampled from its own distribution."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice

import numpy as np

from sleepc.errors import UsageError
from sleepc.runtime.sampling import Sampling
from sleepc.runtime.session import Session
from sleepc.runtime.steps import IntArray, Steps

ROUNDS = 32  # of sampling for one batch, if texts end early


@dataclass(frozen=True)
class Writer:
    """Writes texts of at most `length` tokens: `opening`, then what the teacher draws at temperature 1.

    If `opening` is empty a text begins with a random token. It ends with a token of `eos_ids` and has none of
    `never`; texts that end before `least` tokens are dropped. `batch` texts are written side by side, and piece n
    depends on `seed`, `batch` and n // batch alone.

    Raises UsageError for lengths that do not fit the teacher, and for numbers outside their range.
    """

    steps: Steps
    opening: Sequence[int]
    length: int
    seed: int
    batch: int
    eos_ids: Collection[int] = ()
    never: Collection[int] = ()
    least: int = 2
    top_p: float = 1.0

    def __post_init__(self) -> None:
        given = max(len(self.opening), 1)
        if not given < self.length <= self.steps.window:
            raise UsageError(
                f"the teacher cannot write {self.length} tokens: it reads {self.steps.window}, and the first {given} "
                "are given",
                fix=f"Give a length from {given + 1} to {self.steps.window}.",
            )
        if self.batch < 1 or self.seed < 0:
            raise UsageError(f"batch {self.batch}, seed {self.seed}", fix="Batches are 1 or more, seeds 0 or more.")
        Sampling(1.0, top_p=self.top_p)  # raises for a top_p outside its range

    def pieces(self, start: int = 0) -> Iterator[IntArray]:
        """The pieces from number `start` on, without an end and without writing the earlier batches.

        Raises UsageError, when they are asked for, if texts end too early.
        """
        if start < 0:
            raise UsageError(f"start {start} is negative", fix="Give 0 or more.")
        group, skip = divmod(start, self.batch)
        texts = chain.from_iterable(self._group(number) for number in count(group))
        return islice(texts, skip, None)

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
        ids = np.setdiff1d(np.arange(self.steps.vocab), sorted({*self.eos_ids, *self.never}))
        return rng.choice(ids, (rows, 1)).astype(np.int64)
