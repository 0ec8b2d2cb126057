"""The invariants of semantics.md, section 6, as measurements on any backend's steps: each returns the largest error.

A `Bench` is one program on one backend with three streams of different lengths that sleep at uneven distances; what a
session makes of each stream alone and in one go is what everything else is compared with.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sleepc.ir.compare import absolute_error, max_error
from sleepc.runtime.session import Session
from sleepc.runtime.steps import Steps
from sleepc.verify.oracle import Oracle
from sleepc.verify.streams import (
    Pace,
    Padding,
    Readout,
    Stream,
    advance,
    gap,
    gap_to_oracle,
    read,
    same,
    state_of,
    tensors_of,
)

Logits = Callable[[Tensor], Tensor]


@dataclass
class Bench:
    """`oracle` may be missing if the original is; `seed` chooses the random pieces."""

    steps: Steps
    oracle: Oracle | None
    streams: tuple[Stream, Stream, Stream]
    seed: int = 0

    @cached_property
    def alone(self) -> list[Readout]:
        """Every stream in a session of its own, in pieces as long as sleeps allow."""
        return [read(self.steps, [stream], ask="all") for stream in self.streams]

    def distance(self, index: int, reading: Readout, row: int = 0) -> float:
        """How far logits and state of one row are from those of stream `index` alone."""
        wanted = self.alone[index]
        error = max_error(reading.logits[row], wanted.logits[0][reading.places[row]])
        return max(error, gap(reading.row(row), wanted.state))

    def distances(self, reading: Readout) -> float:
        """The same for a session that has read all streams."""
        return max(self.distance(b, reading, b) for b in range(len(self.streams)))


def chunking(bench: Bench) -> float:
    """1: one token at a time over two sleeps, and in random pieces, against all at once."""
    first = bench.streams[0]
    singly = read(bench.steps, [first], most=1)
    split = read(bench.steps, [first], seed=bench.seed + 1)
    return max(bench.distance(0, reading) for reading in (singly, split))


def inside(steps: Steps, stream: Stream, original: Logits) -> float:
    """2: the largest absolute error of a logit before the first sleep, against the original."""
    tokens = stream.tokens[: stream.next_cut(0)]
    wanted = original(torch.from_numpy(tokens)[None])[0]
    return absolute_error(torch.from_numpy(Session(steps).feed(tokens, logits="all")[0]), wanted)


def definition(bench: Bench) -> float:
    """4: logits, memories and KV windows at the end of every stream against the oracle's."""
    assert bench.oracle is not None
    errors = []
    for stream, reading in zip(bench.streams, bench.alone, strict=True):
        with torch.no_grad():
            wanted = bench.oracle(torch.from_numpy(stream.tokens)[None], stream.cuts)
        errors.append(max_error(reading.logits[0], wanted.logits()[0]))
        errors.append(gap_to_oracle(reading.state, wanted.state()))
    return max(errors)


def padding(bench: Bench) -> float:
    """5: streams as rows of one batch, padded on either side, asleep at different times, against each alone; also what
    stands at padding, and a row that reads nothing, which keeps its state bit for bit.
    """
    styles: tuple[Padding, ...] = ("left", "right", "inside")
    readings = [read(bench.steps, bench.streams, padding=p, seed=bench.seed + i) for i, p in enumerate(styles)]
    error = max(bench.distances(reading) for reading in readings)
    return max(error, _what_padding_holds(bench), _row_that_waits(bench))


def _what_padding_holds(bench: Bench) -> float:
    """Below the session: ids at padding, which it sets to 0, may be any."""
    first, steps = bench.streams[0], bench.steps
    count = min(first.next_cut(0), len(first.tokens))
    lengths = np.array([count, max(count - 2, 0), 0], dtype=np.int64)
    tokens = np.tile(first.tokens[:count], (3, 1))
    real = np.arange(count) < lengths[:, None]
    results = []
    for ids in (np.where(real, tokens, 0), np.where(real, tokens, (tokens + 1) % steps.vocab)):
        out, state = steps.wake(steps.new_state(3), ids, lengths, "all")
        assert out is not None
        logits = torch.from_numpy(np.array(out))[torch.from_numpy(real)]
        results.append((logits, tensors_of(steps, state)))
    (a, state_a), (b, state_b) = results
    return max(max_error(b, a), gap(state_b, state_a))


def _row_that_waits(bench: Bench) -> float:
    """Row 0 reads on, through a sleep, while row 1 reads padding; and padding gets logits of 0."""
    first = bench.streams[0]
    session = Session(bench.steps, 2)
    half = max(first.next_cut(0) // 2, 1)
    session.feed([first.tokens[:half].tolist(), first.tokens[: half // 2].tolist()], logits="none")
    before = Readout([], [], state_of(session)).row(1)
    done, silent = [half, 0], Stream(first.tokens[:0], ())
    short = Stream(first.tokens[: min(first.next_cut(half) + 2, len(first.tokens))], first.cuts)
    advance(session, [short, silent], done, Pace(padding="right", ask="none"))
    after = Readout([], [], state_of(session)).row(1)
    ids = np.tile(first.tokens[:1], (2, 2))
    out = session.feed(ids, np.array([[True, False], [False, False]]), logits="all")
    blank = not out[1].any() and not out[0, 1].any()
    return 0.0 if same(after, before) and blank else math.inf


def state_bytes(bench: Bench) -> float:
    """6: by how many bytes the state of one row changes on the way through a stream."""
    first, session = bench.streams[0], Session(bench.steps)
    sizes = [_bytes(session)]
    for end in (1, *first.cuts, len(first.tokens)):
        done = [session.stats.tokens_read]
        advance(session, [Stream(first.tokens[:end], first.cuts)], done, Pace(ask="none"))
        sizes.append(_bytes(session))
    return float(max(sizes) - min(sizes))


def _bytes(session: Session) -> int:
    return sum(t.numel() * t.element_size() for t in state_of(session).values())


def saving(bench: Bench) -> float:
    """7: a session that continues from a file against the one that never stopped: 0 if all bits agree, else inf."""
    streams, error = bench.streams, 0.0
    half = [Stream(s.tokens[: 2 * len(s.tokens) // 3], s.cuts) for s in streams]
    session = Session(bench.steps, len(streams))
    done = [0] * len(streams)
    advance(session, half, done)
    with tempfile.TemporaryDirectory() as folder:
        session.save_state(Path(folder) / "state")
        again = Session(bench.steps, len(streams))
        again.load_state(Path(folder) / "state")
    kept = list(done)
    (one, _), (two, _) = advance(session, streams, done), advance(again, streams, kept)
    equal = same(dict(enumerate_logits(two)), dict(enumerate_logits(one))) and same(state_of(again), state_of(session))
    return error if equal else math.inf


def enumerate_logits(logits: list[Tensor]) -> list[tuple[str, Tensor]]:
    """Logits of rows by name, so that they compare like a state."""
    return [(str(b), row) for b, row in enumerate(logits)]


def permuting(bench: Bench) -> float:
    """8: the streams in another order of rows."""
    order = (2, 0, 1)
    reading = read(bench.steps, [bench.streams[b] for b in order])
    return max(bench.distance(b, reading, row) for row, b in enumerate(order))


def lengths(bench: Bench) -> float:
    """9: calls without tokens, with one, and one token repeated through a sleep."""
    first = bench.streams[0]
    session = Session(bench.steps)
    fresh = state_of(session)
    nothing = session.feed(first.tokens[:0], logits="all")
    error = 0.0 if nothing.shape == (1, 0, bench.steps.vocab) and same(state_of(session), fresh) else math.inf
    one = torch.from_numpy(session.feed(first.tokens[:1], logits="all")[0])
    error = max(error, max_error(one, bench.alone[0].logits[0][:1]))
    session.feed(first.tokens[:0], logits="none")
    session.sleep()
    session.sleep()  # nothing to consolidate
    count = first.next_cut(0) + 3
    cuts = tuple(range(first.next_cut(0), count + 1, bench.steps.window))
    same_token = Stream(np.full(count, first.tokens[0]), cuts)
    repeated, singly = read(bench.steps, [same_token], ask="all"), read(bench.steps, [same_token], most=1)
    known = repeated.logits[0][singly.places[0]]
    error = max(error, max_error(singly.logits[0], known), gap(singly.state, repeated.state))
    if bench.oracle is None:
        return error
    with torch.no_grad():
        wanted = bench.oracle(torch.from_numpy(same_token.tokens)[None], same_token.cuts)
    return max(error, max_error(repeated.logits[0], wanted.logits()[0]))
