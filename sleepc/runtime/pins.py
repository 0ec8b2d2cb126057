"""Spans of a row's stream that are pinned or dropped: what a session marks in its state between two steps.

All of it is in the arrays of the state (steps.py), so it holds in every backend, in copies, and in files.
"""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, TypeAlias

import numpy as np

from sleepc.errors import UsageError
from sleepc.ir.roles import PINNED, PINNED_SCORE
from sleepc.runtime.steps import GAP, KEPT, RECORD, SCORE, TOKEN, Array, BoolArray, IntArray, Signature, Steps
from sleepc.runtime.values import whole

Place = Literal["sinks", "slots", "window"]


@dataclass(frozen=True)
class Span:
    """Tokens start .. stop-1 of a row's stream that the row still has: all heads see `sinks` and what is in the
    `window`, and what is in `slots` those KV heads that have kept it. `pairs`: how many slots hold one of them.
    """

    start: int
    stop: int
    place: Place
    pinned: bool
    pairs: int


LEAST_SCORE = -1e29  # of one that was pinned: what it was worth is not known; above NOTHING (sleepc/ir/roles.py)
SpanLike: TypeAlias = Span | range | Sequence[int]


@dataclass(frozen=True)
class Share:
    """Of a pinned span's tokens, in one KV head: `kept` are in its slots, or will be after the next sleep; for `full`
    it has no slot left; `gone` had left the window, and it had not kept them.
    """

    kept: int
    full: int
    gone: int


@dataclass(frozen=True)
class Kept:
    """What pinning tokens start .. stop-1 came to. `sinks` of them every layer has for good; `window` are still to be
    chosen, by the next sleep; `heads` are the KV heads of every block that keeps pairs, without the sinks; no head
    keeps the `lost` ones.
    """

    start: int
    stop: int
    sinks: int
    window: int
    heads: Mapping[int, tuple[Share, ...]]
    lost: int

    def __str__(self) -> str:
        shares = [share for heads in self.heads.values() for share in heads]
        left = self.stop - self.start - self.sinks
        all_, some = sum(s.kept == left for s in shares), sum(0 < s.kept < left for s in shares)
        text = f"{left + self.sinks} tokens: of {len(shares)} KV heads {all_} keep them all, and {some} a part"
        text += f"; {self.lost} are kept by none" if self.lost else ""
        text += f"; {self.sinks} are sinks" if self.sinks else ""
        return text + ("; those in the window go into the slots at the next sleep" if self.window else "")


@dataclass(frozen=True)
class Dropped:
    """What dropping tokens start .. stop-1 came to: `window` of them were still in the window, `pairs` slots held one.
    `sinks` of them stay: attention relies on them. Fast weights keep what they took.
    """

    start: int
    stop: int
    sinks: int
    window: int
    pairs: int

    def __str__(self) -> str:
        text = f"{self.stop - self.start} tokens: {self.window} went out of the window, and {self.pairs} slots are free"
        text += f"; {self.sinks} are sinks, which stay" if self.sinks else ""
        return text + "; fast weights keep what they took of them"


@dataclass(frozen=True)
class Unpinned:
    """What taking the pins off tokens start .. stop-1 came to: `window` of them waited for the next sleep, which now
    chooses among them as among others; `pairs` slots hold one, until a head wants the place for any other pair.
    """

    start: int
    stop: int
    window: int
    pairs: int

    def __str__(self) -> str:
        if not self.window + self.pairs:
            return f"{self.stop - self.start} tokens: none was pinned"
        text = f"{self.stop - self.start} tokens: {self.window} in the window are not pinned any more"
        return text + f"; {self.pairs} slots keep theirs until other pairs come"


def check_marks(signature: Signature) -> None:
    """Raises UsageError for a program in whose state nothing can be pinned or dropped."""
    if PINNED not in signature:
        raise UsageError(
            "this program keeps no pairs that could be pinned or dropped",
            fix="Convert the model with --keep; convert it again if an older sleepc did.",
        )


def bounds(span: SpanLike, read: int) -> tuple[int, int]:
    """Start and stop of a span. Raises UsageError for anything that is none, and tokens that were not `read`."""
    if isinstance(span, Span) or (isinstance(span, range) and span.step == 1):
        ends: list[Any] = [span.start, span.stop]
    else:
        ends = list(span) if isinstance(span, (list, tuple, np.ndarray)) else []
    if len(ends) != 2:
        what = f"{reprlib.repr(span)} is not a span of tokens"
        raise UsageError(what, fix="Give the first token and the one after the last: (4, 90).")
    start, stop = (whole(end, "span", "Give the numbers of two tokens: (4, 90).") for end in ends)
    if not 0 <= start < stop <= read:
        why = f"the row has read {read} tokens, and the span is {start} … {stop - 1}" if start < stop else "it is empty"
        fix = "session.position says how many tokens each row has read."
        raise UsageError(f"there is no such span: {why}", fix=fix)
    return start, stop


class Marks:
    """One row of a state's arrays, which are marked in place."""

    def __init__(self, steps: Steps, arrays: dict[str, Array], row: int) -> None:
        self.steps, self.arrays, self.row = steps, arrays, row
        self.read = int(arrays["position"][row])
        self.first = self.read - int(arrays["since"][row])  # of this window
        self.rings = {int(name.removeprefix(GAP)): each[row] for name, each in arrays.items() if name.startswith(GAP)}
        self.sinks = next(len(gaps) - length for length, gaps in self.rings.items())

    def spans(self) -> list[Span]:
        """What the row has, oldest first; `window` is that of all heads that keep pairs."""
        sinks = range(min(self.sinks, self.read))
        window = self._in_ring(min(self._of(i, "k").shape[1] - self.sinks for i in self.steps.budgets))
        held, pinned = Counter[int](), set(self._waiting().tolist())
        for i in self.steps.budgets:
            tokens, score = self._of(i, TOKEN), self._of(i, SCORE)
            held.update(tokens[tokens >= 0].tolist())
            pinned.update(tokens[score == PINNED_SCORE].tolist())
        places: dict[int, Place] = {
            **dict.fromkeys(held, "slots"),
            **dict.fromkeys(window.tolist(), "window"),
            **dict.fromkeys(sinks, "sinks"),
        }
        tokens_ = sorted(places)
        alike = groupby(enumerate(tokens_), lambda at: (at[1] - at[0], places[at[1]], at[1] in pinned))
        found = []
        for (_, place, is_pinned), group in alike:
            run = [token for _, token in group]
            found.append(Span(run[0], run[-1] + 1, place, is_pinned, sum(held[t] for t in run)))
        return found

    def keep(self, start: int, stop: int) -> Kept:
        """Pin tokens start .. stop-1."""
        window = self._window(start, stop)
        self.arrays[PINNED][self.row, window - self.first] = True
        heads, kept = {}, set[int]()
        for i, budget in self.steps.budgets.items():
            tokens, score = self._of(i, TOKEN), self._of(i, SCORE)
            score[(tokens >= start) & (tokens < stop)] = PINNED_SCORE
            heads[i] = tuple(self._share(i, budget, head, (start, stop), kept) for head in range(len(budget)))
        sinks = min(max(self.sinks - start, 0), stop - start)
        return Kept(start, stop, sinks, len(window), heads, stop - start - sinks - len(kept))

    def unpin(self, start: int, stop: int) -> Unpinned:
        """Take the pins off tokens start .. stop-1."""
        waiting, pairs = _within(self._waiting(), start, stop), 0
        self.arrays[PINNED][self.row, waiting - self.first] = False
        for i in self.steps.budgets:
            tokens, score = self._of(i, TOKEN), self._of(i, SCORE)
            pinned = (tokens >= start) & (tokens < stop) & (score == PINNED_SCORE)
            score[pinned] = LEAST_SCORE
            pairs += int(pinned.sum())
        return Unpinned(start, stop, len(waiting), pairs)

    def pin_window(self, start: int) -> None:
        """Pin the tokens of this window from number `start` of them on."""
        self.arrays[PINNED][self.row, start : self.read - self.first] = True

    def _share(self, i: int, budget: Sequence[int], head: int, span: tuple[int, int], kept: set[int]) -> Share:
        """What a head has of a span, or will have; `kept` is told which tokens. Of pinned pairs the older ones stay."""
        at, slots = sum(budget[:head]), budget[head]
        tokens, score = (self._of(i, part)[at : at + slots] for part in (TOKEN, SCORE))
        waiting, room = self._waiting(), slots - int((score == PINNED_SCORE).sum())
        has = _within(np.concatenate([tokens, waiting[:room]]), *span)
        full = len(_within(waiting[room:], *span))
        kept.update(has.tolist())
        left = span[1] - max(span[0], min(self.sinks, span[1]))
        return Share(len(has), full, left - len(has) - full)

    def drop(self, start: int, stop: int) -> Dropped:
        """Take tokens start .. stop-1 out of rings, slots and records; sinks stay."""
        empty, window, pairs = self.steps.to_named_arrays(self.steps.new_state(1)), self._window(start, stop), 0
        in_rings = {length: _within(self._in_ring(length), start, stop) for length in self.rings}
        for length, tokens in in_rings.items():
            self.rings[length][self._slot(tokens, length)] = tokens
        self.arrays[PINNED][self.row, window - self.first] = False
        for i in self.steps.budgets:
            tokens = self._of(i, TOKEN)
            out = (tokens >= start) & (tokens < stop)
            pairs += int(out.sum())
            self._empty(i, out, empty)
        for name, array in self.arrays.items():
            if name.partition(".")[2].startswith(RECORD):
                array[self.row, :, window - self.first] = empty[name][0, :, window - self.first]
        sinks = min(max(self.sinks - start, 0), stop - start)
        return Dropped(start, stop, sinks, max(len(tokens) for tokens in in_rings.values()), pairs)

    def _empty(self, i: int, out: BoolArray, empty: Mapping[str, Array]) -> None:
        """Empty the slots `out` [S] of a block; each head's empty ones stand first."""
        owners = np.repeat(np.arange(len(self.steps.budgets[i])), self.steps.budgets[i])
        order = np.lexsort((~out & (self._of(i, TOKEN) >= 0), owners))
        for name, array in self.arrays.items():
            if name.startswith(f"{i}.{KEPT}"):
                array[self.row, out] = empty[name][0, out]
                array[self.row] = array[self.row, order]

    def _of(self, i: int, part: str) -> Array:
        array: Array = self.arrays[f"{i}.{part}"][self.row]
        return array

    def _in_ring(self, length: int) -> IntArray:
        """The tokens that attention sees in KV windows of this length, but for the sinks."""
        tokens = np.arange(max(self.sinks, self.read - length), self.read)
        found: IntArray = tokens[self.rings[length][self._slot(tokens, length)] != tokens]
        return found

    def _slot(self, tokens: IntArray, length: int) -> IntArray:
        found: IntArray = self.sinks + (tokens - self.sinks) % length
        return found

    def _window(self, start: int, stop: int) -> IntArray:
        """The tokens of the span that the next sleep may choose."""
        return _within(self._in_ring(max(self.rings)), max(start, self.first), stop)

    def _waiting(self) -> IntArray:
        """The tokens that are pinned for the next sleep."""
        found: IntArray = self.first + np.flatnonzero(self.arrays[PINNED][self.row])
        return found


def _within(tokens: IntArray, start: int, stop: int) -> IntArray:
    found: IntArray = tokens[(tokens >= start) & (tokens < stop)]
    return found
