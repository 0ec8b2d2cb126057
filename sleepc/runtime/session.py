"""Session: the clock of every row, wake and sleep, generation, and the state as a file."""

from __future__ import annotations

import hashlib
import os
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, NoReturn, TypeVar, Unpack, overload

import numpy as np

from sleepc.errors import SleepcError, SleepcWarning, UsageError
from sleepc.runtime.arguments import typed
from sleepc.runtime.batch import Ids, Mask, Packed, Rows, one_row, pack, row_indices, row_mask
from sleepc.runtime.cartridge import Cartridge, Room, read_cartridge
from sleepc.runtime.pins import Dropped, Kept, Marks, Span, SpanLike, Unpinned, bounds, check_marks
from sleepc.runtime.sampling import Choosing, Sampling, generators, sample, without
from sleepc.runtime.state_file import Contents, read_state, write_state
from sleepc.runtime.steps import (
    CLOCKS,
    Array,
    BoolArray,
    FloatArray,
    IntArray,
    Logits,
    State,
    Steps,
)
from sleepc.runtime.values import whole

T = TypeVar("T")
OnSleep = Callable[[IntArray], None]
LAST, KNOWN = "session.logits", "session.known"  # in addition to the backend's arrays in a state file


@dataclass
class Stats:
    """What a session has done; `seconds` are those spent in the backend, `sleep_seconds` those of them in sleeps; a
    sleep is one row's. `passes` are those of all sleeps together, 0 if sleeps run no block again; `emptied` counts the
    sleeps after which positions began again, since all but the sinks left the window; `skipped` the steps of gradient
    descent that were left out since a gradient was not finite.
    """

    state_bytes: int
    tokens_read: int = 0
    tokens_generated: int = 0
    sleeps: int = 0
    passes: int = 0
    emptied: int = 0
    skipped: int = 0
    seconds: float = 0.0
    sleep_seconds: float = 0.0

    @property
    def passes_per_sleep(self) -> float | None:
        """How many passes a sleep took, on average; None if there was none, or none that runs blocks again."""
        return self.passes / self.sleeps if self.passes else None

    @property
    def sleep_in_tokens(self) -> float | None:
        """How many tokens were read or generated in the time of a sleep, on average; None if there was none of both."""
        awake, tokens = self.seconds - self.sleep_seconds, self.tokens_read + self.tokens_generated
        return self.sleep_seconds / self.sleeps * tokens / awake if self.sleeps and tokens and awake > 0 else None


@dataclass(frozen=True)
class _Before:
    """What is counted of all rows before a sleep: positions, and steps that were left out, if there are any to take."""

    positions: IntArray
    skipped: IntArray | None


@dataclass(frozen=True)
class _Asleep:
    """A sleep in the background: which rows, what was before it, and what it will give: the state, and the seconds
    that it took.
    """

    rows: BoolArray
    before: _Before
    found: Future[tuple[State, float]]


@dataclass(frozen=True)
class Snapshot:
    """A copy of everything that a session's answers depend on; restore it as often as you like."""

    steps: Steps
    state: State
    since: IntArray
    last: FloatArray
    known: BoolArray


class Session:
    """Rows of text read by one program, each with its own sleep clock.

    `on_sleep` is called after each sleep with the indices of the rows that slept. `identity` (a
    hash of the artifact, say) goes into state files: a file of another identity is refused, also
    if shapes agree. A row that passes its `upto`-th token, if the original would change its
    position factors, is warned of (SleepcWarning), once.

    A call that ends in an exception once the backend has begun (Ctrl-C, out of memory, `on_sleep`)
    leaves a state of which nothing is known: the backend may write in place. Until `restore` or
    `load_state` every other use raises UsageError. Errors in what was asked for come before, and
    change nothing.

    With `defers` set, a sleep that a call would end with, its last token being a row's L-th, is left
    for the next use of the session: it comes first there, unless `sleep(background=True)` has done it.
    """

    def __init__(
        self,
        steps: Steps,
        batch: int = 1,
        *,
        identity: str = "",
        on_sleep: OnSleep | None = None,
        upto: int | None = None,
    ) -> None:
        batch = whole(batch, "batch")
        if batch < 1:
            raise UsageError(f"a session of {batch} rows", fix="give a batch of 1 or more")
        self.steps, self.batch, self.identity, self.on_sleep = steps, batch, identity, on_sleep
        self._contents = _state_contents(steps, batch, identity)
        self._stats = Stats(self._contents.nbytes())
        self._state = steps.new_state(batch)
        self.defers = False
        self._since = np.zeros(batch, dtype=np.int64)  # steps.window between calls only where a sleep was deferred
        self._asleep: _Asleep | None = None
        self._last: FloatArray = np.zeros((batch, steps.vocab), dtype=np.float32)
        self._known = np.zeros(batch, dtype=np.bool_)  # is _last that of the row's last token?
        self._upto = upto  # None once it was reported
        self._unfinished = ""  # the call that is changing the state, or that broke off in doing so

    def __repr__(self) -> str:
        done = f"{self._stats.tokens_read + self._stats.tokens_generated} tokens, {self._stats.sleeps} sleeps"
        return f"<sleepc session of {self.batch} rows, window {self.steps.window}: {done}>"

    def __getstate__(self) -> NoReturn:
        fix = "keep its state in a file (save_state), and load that into a session where it is needed (load_state)"
        raise UsageError("a session cannot be pickled or copied", fix=fix)

    # -- reading ---------------------------------------------------------------------------------

    @overload
    def feed(
        self, ids: Ids, mask: Mask | None = None, logits: Literal["last", "all"] = "last", *, pin: bool = False
    ) -> FloatArray: ...

    @overload
    def feed(self, ids: Ids, mask: Mask | None = None, *, logits: Literal["none"], pin: bool = False) -> None: ...

    @overload
    def feed(self, ids: Ids, mask: Mask | None = None, *, logits: Logits, pin: bool = False) -> FloatArray | None: ...

    def feed(
        self, ids: Ids, mask: Mask | None = None, logits: Logits = "last", *, pin: bool = False
    ) -> FloatArray | None:
        """Read tokens: a list (batch 1), one list per row, or [B, T] with `mask` true at tokens.

        Padding may stand anywhere and writes nothing. Every row sleeps at its own L-th token.
        Returns logits [B, V] after each row's last token of this call (0 for a row without one),
        [B, T, V] (0 at padding), or None. After "none" a row has nothing to generate from until
        it is fed again. With `pin` all of it is pinned before any of its sleeps (see `keep`).
        Raises UsageError, with nothing changed, for ids that are not tokens of this model or not of
        this batch, and for `pin` in a program that keeps no pairs.
        """
        if pin:
            check_marks(self.steps.signature())
        if logits not in ("last", "all", "none"):
            raise UsageError(f"logits={logits!r}", fix='ask for "last", "all" or "none"')
        packed = pack(ids, mask, batch=self.batch, vocab=self.steps.vocab)
        with self._changing("feed"):
            every = self._read(packed, logits, pin=pin)
            self._stats.tokens_read += int(packed.lengths.sum())
        if logits == "last":
            read = packed.lengths > 0
            return self._last.copy() if read.all() else np.where(read[:, None], self._last, 0)
        return every

    def sleep(self, rows: Rows | None = None, *, background: bool = False, at_least: int = 1) -> IntArray:
        """Sleep now, before L tokens: `rows` (indices or a bool mask; all by default).

        Rows that hold fewer than `at_least` tokens since their last sleep are left as they are; with
        L, only those sleep whose next token would be preceded by it (see `defers`). Returns the
        indices of those that sleep.

        In the `background` it runs in a thread of its own, and this returns at once. The next use of the session
        waits for its end, and raises what it raised; `on_sleep` is called there. Its state is that of a sleep in the
        foreground, bit for bit. `restore` and `load_state` drop what it gives.
        """
        asked = row_mask(range(self.batch) if rows is None else rows, self.batch)
        if whole(at_least, "at_least") < 1:
            raise UsageError(f"at_least {at_least}: a sleep is over one token at least", fix="Give 1 or more.")
        with self._changing("sleep", due=False):
            tired = asked & (self._since >= at_least)
            if not background:
                return self._sleep_rows(tired)
            if tired.any():
                self._asleep = _Asleep(tired, self._before(), _in_background(lambda: self._timed_sleep(tired)))
            return np.flatnonzero(tired).astype(np.int64)

    # -- writing ---------------------------------------------------------------------------------

    @typed
    def generate(
        self,
        max_tokens: int,
        *,
        seed: int | None = None,
        stop_ids: Collection[int] = (),
        never: Collection[int] = (),
        rows: Rows | None = None,
        **choosing: Unpack[Choosing],
    ) -> Iterator[IntArray]:
        """Continue the rows given (all by default); yields their next tokens [B] int64, one a step. Tokens of `never`
        are not chosen (ids that stand for nothing, say). `temperature`, `top_k` and `top_p`: see Sampling.

        -1 stands for a row that does not generate (any more); it reads nothing, and its state and
        logits stay bit for bit. A row ends after `max_tokens`, or with a token of `stop_ids`,
        which is yielded and read too.

        Every token has been read by the session when it is yielded. So whenever the consumer
        stops (exhausts the iterator, closes it, or just drops it), the state is that of exactly
        the tokens yielded: save it, take a snapshot or feed on, and nothing is missing. To stop
        before a text (stop strings), take a snapshot first.

        Each row draws from its own random numbers, given by `seed` and its index. Raises
        UsageError, at once, for a row that has nothing to continue from, and for stop ids that are no
        tokens of the model.
        """
        sampling = Sampling(**choosing)
        if whole(max_tokens, "max_tokens") < 0:
            raise UsageError(f"max_tokens {max_tokens} is negative")
        active = row_mask(range(self.batch) if rows is None else rows, self.batch)
        self._require_whole()
        self._require_logits(active)
        stop, banned = (self._tokens_of_model(ids) for ids in (stop_ids, never))
        return self._generated(max_tokens, sampling, generators(seed, self.batch), stop, banned, active)

    def _generated(
        self,
        max_tokens: int,
        sampling: Sampling,
        randoms: list[np.random.Generator],
        stop: IntArray,
        never: IntArray,
        active: BoolArray,
    ) -> Iterator[IntArray]:
        for _ in range(max_tokens):
            if not active.any():
                return
            self._require_whole()
            self._require_logits(active)  # the consumer may have fed or restored in between
            chosen = np.full(self.batch, -1, dtype=np.int64)
            for row in np.flatnonzero(active):
                chosen[row] = sample(without(self._last[row], never), sampling, randoms[row])
            tokens = np.where(active, chosen, 0)[:, None]
            with self._changing("generate"):
                self._read(Packed(tokens, active.astype(np.int64), np.zeros_like(tokens)), "last")
                self._stats.tokens_generated += int(active.sum())
            active = active & ~np.isin(chosen, stop)
            yield chosen

    # -- pinning ---------------------------------------------------------------------------------

    def spans(self, row: int | None = None) -> list[Span]:
        """What a row still has of its stream, oldest first; `row` may be left out if there is only one. Raises
        UsageError for a program that keeps no pairs.
        """
        return self._marks(row).spans()

    def keep(self, span: SpanLike, row: int | None = None) -> Kept:
        """Pin tokens of a row, (first, one after the last) by their numbers in its stream: every KV head that keeps
        pairs keeps these before all others, through all sleeps, as far as it has slots and they have not gone. What
        did not fit is in the answer. Raises UsageError for tokens that were not read, and as `spans`.
        """
        marks = self._marks(row)
        start, stop = bounds(span, marks.read)
        with self._marking("keep", marks):
            return marks.keep(start, stop)

    def unpin(self, span: SpanLike, row: int | None = None) -> Unpinned:
        """Take the pins off tokens of a row: nothing is lost by it, but later pairs may replace those that are in
        slots, which are the first to go. Raises as `keep`.
        """
        marks = self._marks(row)
        start, stop = bounds(span, marks.read)
        with self._marking("unpin", marks):
            return marks.unpin(start, stop)

    def drop(self, span: SpanLike, row: int | None = None) -> Dropped:
        """Take tokens of a row out of its window and its slots, at once and for good: attention does not see them any
        more. Sinks stay, and fast weights keep what they took. Raises as `keep`.
        """
        marks = self._marks(row)
        start, stop = bounds(span, marks.read)
        with self._marking("drop", marks):
            return marks.drop(start, stop)

    # -- keeping ---------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """A copy of the state, for undo; costs `stats.state_bytes`."""
        self._require_whole()
        return self._copy(np.arange(self.batch, dtype=np.int64))

    @typed
    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot of a session of the same steps and batch; it stays usable."""
        if snapshot.steps is not self.steps or len(snapshot.since) != self.batch:
            raise UsageError(
                "the snapshot is of another model or batch",
                fix=f"restore one that was taken from this session ({self.batch} rows)",
            )
        everyone = np.arange(self.batch, dtype=np.int64)
        state = self.steps.select_rows(snapshot.state, everyone)
        self._become(replace(snapshot, state=state))

    def select_rows(self, rows: Rows) -> Session:
        """A new session with copies of these rows, in this order, repeats allowed (to try several
        answers to one prompt, say); it `defers` as this one does, and has its own stats and no `on_sleep`."""
        chosen = row_indices(rows, self.batch)
        self._require_whole()
        session = Session(self.steps, len(chosen), identity=self.identity, upto=self._upto)
        session.defers = self.defers
        session._become(self._copy(chosen))
        return session

    @typed
    def save_state(self, path: str | os.PathLike[str], notes: Mapping[str, str] | None = None) -> None:
        """Write the state and the last logits as one safetensors file, whole or not at all.

        A session that loads it continues bit for bit. `notes` go into its metadata, for `read_note`.
        Raises SleepcError if it cannot be written.
        """
        self._require_whole()
        arrays = self.steps.to_named_arrays(self._state)
        if not np.array_equal(arrays["since"], self._since):
            raise SleepcError(
                f"the backend counts {arrays['since'].tolist()} tokens since the last sleep, and "
                f"the session {self._since.tolist()}",
                where="since",
                fix="the backend's wake or sleep moves the clock wrongly; nothing was written",
            )
        own: dict[str, Array] = {LAST: self._last.astype(np.float64), KNOWN: self._known}
        write_state(path, {**arrays, **own}, self._file_contents(notes or {}))

    @typed
    def load_state(self, path: str | os.PathLike[str]) -> None:
        """Continue from a file of `save_state`, of the same model and batch.

        Raises UsageError (no such file) or SleepcError (cut off, another version, model or batch),
        and then nothing has changed.
        """
        arrays = read_state(path, self._file_contents({}))
        last, known, since = arrays.pop(LAST), arrays.pop(KNOWN), arrays["since"].copy()
        sound = (since >= 0) & (since < self.steps.window) & (arrays["position"] >= 0)
        if not sound.all():
            raise SleepcError(
                f"the state file's clocks are impossible: {since.tolist()} tokens since the last "
                f"sleep in a window of {self.steps.window}, position {arrays['position'].tolist()}",
                where=str(path),
                fix="the file is damaged: feed the text again, or load another file",
            )
        state = self.steps.from_named_arrays(arrays)
        self._become(Snapshot(self.steps, state, since, last, known))

    @typed
    def load_cartridges(
        self, cartridges: Sequence[str | os.PathLike[str] | Cartridge], rows: Rows | None = None
    ) -> None:
        """Put cartridges, or files of them (`sleepc cartridge`), into the slots of rows that have read nothing, all
        rows by default: they go on as if they had read the documents. Several are the pairs of all, with the first
        one's sinks.

        Raises UsageError for rows that have read something, a program that keeps no pairs, and more pairs than slots;
        SleepcError for what is damaged or of another model. Nothing has changed then.
        """
        most = 2 * self.stats.state_bytes  # a file has in float32 what a state may have in 16 bits
        found = [each if isinstance(each, Cartridge) else read_cartridge(each, most) for each in cartridges]
        chosen = row_mask(range(self.batch) if rows is None else rows, self.batch)
        begun = np.flatnonzero(chosen & (self.position > 0)).tolist()
        if begun:
            what = f"row {', '.join(map(str, begun))} has read something already"
            raise UsageError(what, fix="Load cartridges into a new session, all of a row at once.")
        room = Room(self.steps, self.identity)
        room.check(found)
        with self._changing("load_cartridges"):
            arrays = self.steps.to_named_arrays(self._state)
            for row in np.flatnonzero(chosen):
                room.place(arrays, int(row), found)
            self._state = self.steps.from_named_arrays(arrays)

    # -- looking ---------------------------------------------------------------------------------

    @property
    def stats(self) -> Stats:
        """A copy of the counts so far. They go on through `restore` and `load_state`."""
        self._settle()
        return replace(self._stats)

    @property
    def since(self) -> IntArray:
        """Tokens of each row since its last sleep [B], a copy."""
        self._settle()
        return self._since.copy()

    @property
    def position(self) -> IntArray:
        """The number of each row's next token in its stream [B], a copy: how many it has read, or, since a sleep that
        emptied its window, how many it has read since then and the sinks.
        """
        self._settle()
        return self.steps.positions(self._state)

    # -- inside ----------------------------------------------------------------------------------

    def _read(self, packed: Packed, want: Logits, *, pin: bool = False) -> FloatArray | None:
        """Wake over every row's tokens up to its own next sleep, sleep, and so on to the end."""
        every: FloatArray | None = None
        done, width = np.zeros(self.batch, dtype=np.int64), packed.tokens.shape[1]
        one_call = width > 0 and bool(((packed.lengths == width) & (self._since + width <= self.steps.window)).all())
        if want == "all" and not one_call:
            every = np.zeros((*packed.tokens.shape, self.steps.vocab), dtype=self._last.dtype)
        while (done < packed.lengths).any():
            count = np.minimum(packed.lengths - done, self.steps.window - self._since)
            tokens, columns = packed.cut(done, count)
            done += count
            ending = (count > 0) & (done == packed.lengths)
            out = self._wake(tokens, count, "none" if want == "last" and not ending.any() else want)
            if want == "all" and one_call:
                every = out
            elif every is not None and out is not None:
                rows, at = np.nonzero(np.arange(tokens.shape[1]) < count[:, None])
                every = every.astype(out.dtype, copy=False)
                every[rows, columns[rows, at]] = out[rows, at]
            self._keep_last(out, ending, count)
            if pin:
                self._pin_last(count)
            if not self.defers or (done < packed.lengths).any():
                self._sleep_rows(self._since == self.steps.window)
        return every

    def _pin_last(self, count: IntArray) -> None:
        """Pin the last tokens of each row, before it sleeps."""
        arrays = self.steps.to_named_arrays(self._state)
        for row in range(self.batch):
            Marks(self.steps, arrays, row).pin_window(int(self._since[row] - count[row]))
        self._state = self.steps.from_named_arrays(arrays)

    def _keep_last(self, out: FloatArray | None, ending: BoolArray, count: IntArray) -> None:
        self._known &= count == 0
        if out is None:
            return
        if out.ndim == 2 and ending.all():
            self._last, self._known = out, ending
            return
        self._last = self._last.astype(out.dtype, copy=False)
        rows = np.flatnonzero(ending)
        self._last[rows] = out[rows] if out.ndim == 2 else out[rows, count[rows] - 1]
        self._known |= ending

    def _wake(self, tokens: IntArray, count: IntArray, want: Logits) -> FloatArray | None:
        start = time.perf_counter()
        out, self._state = self.steps.wake(self._state, tokens, count, want)
        self._stats.seconds += time.perf_counter() - start
        self._since = self._since + count
        if self._upto is not None:
            self._tell_border(self._upto, count)
        if want == "none":
            return None
        size = (self.steps.vocab,) if want == "last" else (tokens.shape[1], self.steps.vocab)
        if out is None or out.shape != (self.batch, *size) or out.dtype not in _LOGITS:
            found = "nothing" if out is None else f"{out.dtype} {list(out.shape)}"
            raise SleepcError(f"the backend's wake gave {found} for logits {[self.batch, *size]}", where="wake")
        return out

    def _tell_border(self, upto: int, count: IntArray) -> None:
        now = self.steps.positions(self._state)
        if ((now > upto) & (now - count <= upto)).any():
            self._upto = None
            warn_of_border(upto)

    def _sleep_rows(self, rows: BoolArray) -> IntArray:
        if not rows.any():
            return np.zeros(0, np.int64)
        return self._slept(rows, self._before(), *self._timed_sleep(rows))

    def _before(self) -> _Before:
        return _Before(self.steps.positions(self._state), self.steps.steps_skipped(self._state))

    def _timed_sleep(self, rows: BoolArray) -> tuple[State, float]:
        """The state after a sleep, and the seconds that it took. In the background this is all that is done."""
        start = time.perf_counter()
        return self.steps.sleep(self._state, rows), time.perf_counter() - start

    def _slept(self, rows: BoolArray, before: _Before, state: State, seconds: float) -> IntArray:
        """Rows have slept, which were as `before` says: indices of them."""
        slept = np.flatnonzero(rows).astype(np.int64)
        self._state = state
        self._stats.seconds += seconds
        self._stats.sleep_seconds += seconds
        self._stats.sleeps += len(slept)
        self._stats.emptied += int((self.steps.positions(self._state) < before.positions).sum())
        taken = self.steps.passes_taken(self._state)
        self._stats.passes += 0 if taken is None else int(taken[slept].sum())
        skipped = self.steps.steps_skipped(self._state)
        if before.skipped is not None and skipped is not None:
            self._tell_skipped(int((skipped - before.skipped).sum()))
        self._since = np.where(rows, 0, self._since)
        if self.on_sleep is not None:
            self.on_sleep(slept.copy())
        return slept

    def _tell_skipped(self, count: int) -> None:
        """Count steps that were left out, and say so the first time."""
        if count and not self._stats.skipped:
            text = (
                "a sleep's gradient was not finite: its step was left out, and what the row has learned is as before "
                "(session.stats.skipped counts these)"
            )
            warnings.warn(text, SleepcWarning, stacklevel=3)
        self._stats.skipped += count

    def _settle(self, *, due: bool = True) -> None:
        """What every use of the session begins with: wait for the sleep in the background, and let rows sleep that are
        `due`. Ctrl-C while it waits changes nothing. A session that is broken stays as it is.
        """
        if self._unfinished:
            return
        if self._asleep is not None:
            wait([self._asleep.found])
            with self._marked("sleep"):
                asleep, self._asleep = self._asleep, None
                self._slept(asleep.rows, asleep.before, *asleep.found.result())
        tired = self._since == self.steps.window
        if due and tired.any():
            with self._marked("sleep"):
                self._sleep_rows(tired)

    def _marks(self, row: int | None) -> Marks:
        self._require_whole()
        check_marks(self.steps.signature())
        at = one_row(row, self.batch)
        return Marks(self.steps, self.steps.to_named_arrays(self._state), at)

    @contextmanager
    def _marking(self, call: str, marks: Marks) -> Iterator[None]:
        with self._changing(call):
            yield
            self._state = self.steps.from_named_arrays(marks.arrays)

    def _copy(self, rows: IntArray) -> Snapshot:
        state = self.steps.select_rows(self._state, rows)
        return Snapshot(self.steps, state, self._since[rows], self._last[rows], self._known[rows])

    def _become(self, other: Snapshot) -> None:
        if self._asleep is not None:  # nobody needs what it gives; but two at once would take longer
            wait([self._asleep.found])
        with self._marked("restore"):
            self._asleep = None
            self._state, self._since = other.state, other.since.copy()
            self._last, self._known = other.last.copy(), other.known.copy()

    def _file_contents(self, notes: Mapping[str, str]) -> Contents:
        # Logits are written as f64, which holds f32 exactly: before its first wake a session
        # does not know which of the two its backend gives.
        own = {LAST: ("f64", ("B", self.steps.vocab)), KNOWN: ("bool", ("B",))}
        return replace(self._contents, arrays={**self._contents.arrays, **own}, notes=notes)

    @contextmanager
    def _changing(self, call: str, *, due: bool = True) -> Iterator[None]:
        """A call that changes the state of a session that is whole; `due` as in `_settle`."""
        self._require_whole(due=due)
        with self._marked(call):
            yield

    @contextmanager
    def _marked(self, call: str) -> Iterator[None]:
        """Marks the session as broken until the body has come to its end."""
        self._unfinished = call
        yield
        self._unfinished = ""

    def _require_whole(self, *, due: bool = True) -> None:
        self._settle(due=due)
        if self._unfinished:
            raise UsageError(
                f"the session's last call ({self._unfinished}) did not finish: what its state holds is not known",
                fix="restore a snapshot, load a state, or open a new session",
            )

    def _tokens_of_model(self, ids: Collection[int]) -> IntArray:
        if not isinstance(ids, Collection) or isinstance(ids, str):
            raise UsageError(f"{ids!r} is not a list of token ids", fix="Give a list: [2].")
        found = np.array(sorted(whole(x, "token id") for x in ids), dtype=np.int64)
        beyond = found[(found < 0) | (found >= self.steps.vocab)].tolist()
        if beyond:
            raise UsageError(
                f"the model has no token {beyond[0]}: ids are 0 … {self.steps.vocab - 1}",
                fix="If the tokenizer names it as an end of answers, check that it is the tokenizer of this model.",
            )
        return found

    def _require_logits(self, rows: BoolArray) -> None:
        missing = np.flatnonzero(rows & ~self._known).tolist()
        if missing:
            raise UsageError(
                f"there is nothing to continue from in row {', '.join(map(str, missing))}",
                fix='feed tokens first, with logits="last" or "all", or name other rows',
            )


def warn_of_border(upto: int) -> None:
    """Say that a text is longer than the position factors of the program are for."""
    text = (
        f"the text is longer than {upto} tokens, and this model was converted with the position factors of "
        "shorter ones: answers may get worse from here on. Convert it with --rope-factors long for long texts."
    )
    warnings.warn(text, SleepcWarning, stacklevel=3)


def _in_background(work: Callable[[], T]) -> Future[T]:
    """A function in a thread that ends with it. A new thread has its maker's way with numbers too small for others, on
    which bits depend; one that waited for work from before would not.
    """
    pool = ThreadPoolExecutor(1, "sleepc-sleep")
    try:
        return pool.submit(work)
    finally:
        pool.shutdown(wait=False)


_LOGITS = (np.dtype(np.float32), np.dtype(np.float64))


def _state_contents(steps: Steps, batch: int, identity: str) -> Contents:
    """What a file of a backend's state holds."""
    signature = {name: (dtype, tuple(dims)) for name, (dtype, dims) in steps.signature().items()}
    for name, kind in CLOCKS.items():
        if signature.get(name) != kind:
            raise SleepcError(
                f"the backend's signature has {signature.get(name)} where a state has {kind}",
                where=name,
            )
    facts = {"window": str(steps.window), "vocab": str(steps.vocab), "identity": identity}
    if steps.budgets:  # shapes only tell their sums
        slots = sorted((i, tuple(each)) for i, each in steps.budgets.items())
        facts["budgets"] = hashlib.sha256(repr(slots).encode()).hexdigest()[:16]
    return Contents(facts, signature, batch)
