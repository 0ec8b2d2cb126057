"""Any schedule of feeds, sleeps, saves and undos equals rows that are read one by one."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sleepc.runtime.session import Session
from sleepc.runtime.steps import BoolArray, IntArray, Logits
from tests.runtime.fake import FakeSteps, Row

VOCAB = 11
Layout = tuple[IntArray, BoolArray]


def laid_out(rows: list[list[int]], places: list[list[int]], width: int) -> Layout:
    """Rows at the given columns of [B, width]; ids that are no tokens at all stand at padding."""
    ids = np.full((len(rows), width), -100, dtype=np.int64)
    mask = np.zeros(ids.shape, dtype=np.bool_)
    for row, (tokens, at) in enumerate(zip(rows, places, strict=True)):
        ids[row, at], mask[row, at] = tokens, True
    return ids, mask


class World:
    """A session and its rows side by side."""

    def __init__(self, batch: int, window: int) -> None:
        self.slept: list[int] = []
        self.steps = FakeSteps(window, VOCAB)
        self.session = Session(self.steps, batch, on_sleep=lambda rows: self.slept.extend(rows))
        self.rows = [Row(window, VOCAB) for _ in range(batch)]
        self.kept = (self.session.snapshot(), [row.copy() for row in self.rows])

    def feed(self, draw: Callable[..., Any], logits: Logits) -> None:
        lists = [draw(st.lists(st.integers(0, VOCAB - 1), max_size=11)) for _ in self.rows]
        expected = [[row.read(t) for t in tokens] for row, tokens in zip(self.rows, lists, strict=True)]
        longest = max(map(len, lists))
        layout = draw(st.sampled_from(["lists", "left", "right", "anywhere"]))
        width = longest + (0 if layout == "lists" else draw(st.integers(0, 3)))
        places = [self.place(draw, layout, len(tokens), width) for tokens in lists]
        if layout == "lists":
            flat = len(lists) == 1 and draw(st.booleans())
            out = self.session.feed(lists[0] if flat else lists, logits=logits)
        else:
            out = self.session.feed(*laid_out(lists, places, width), logits=logits)
        if logits == "last":
            wanted = np.zeros((len(lists), VOCAB))
            for index, row in enumerate(expected):
                wanted[index] = row[-1] if row else 0
            np.testing.assert_array_equal(out, wanted)
        elif logits == "all":
            wanted = np.zeros((len(lists), width, VOCAB))
            for index, row in enumerate(expected):
                wanted[index, places[index]] = np.reshape(row, (-1, VOCAB))
            np.testing.assert_array_equal(out, wanted)
        else:
            assert out is None
            for row_, tokens in zip(self.rows, lists, strict=True):
                row_.last = None if tokens else row_.last

    @staticmethod
    def place(draw: Callable[..., Any], layout: str, count: int, width: int) -> list[int]:
        if layout == "left":
            return list(range(width - count, width))
        if layout == "anywhere":
            order: list[int] = draw(st.permutations(range(width)))
            return sorted(order[:count])
        return list(range(count))

    def rest(self, draw: Callable[..., Any]) -> None:
        """A schedule of sleeps before the window is full, in the background; whatever comes next may come too early."""
        self.session._settle(due=False)
        at_least = draw(st.integers(1, self.steps.window))
        before, full = len(self.slept), self.session._since == self.steps.window
        slept = self.session.sleep(background=True, at_least=at_least)
        assert len(self.slept) == before, "on_sleep is called by the next use"
        tired = [i for i, row in enumerate(self.rows) if full[i] or len(row.window) >= at_least]
        assert slept.tolist() == tired
        for i in tired:
            self.rows[i].sleep()

    def sleep(self, draw: Callable[..., Any]) -> None:
        mask = draw(st.lists(st.booleans(), min_size=len(self.rows), max_size=len(self.rows)))
        self.session._settle(due=False)
        full = self.session._since == self.steps.window  # their sleep was deferred; plain rows have slept already
        holding = [i for i, row in enumerate(self.rows) if mask[i] and (row.window or full[i])]
        indices = [i for i, asked in enumerate(mask) if asked]
        background = draw(st.booleans())
        slept = self.session.sleep(draw(st.sampled_from([mask, indices, np.array(mask)])), background=background)
        assert slept.tolist() == holding
        for i in holding:
            self.rows[i].sleep()

    def generate(self, draw: Callable[..., Any]) -> None:
        able = [i for i, row in enumerate(self.rows) if row.last is not None]
        rows = draw(st.lists(st.sampled_from(able), unique=True)) if able else []
        count, stop = draw(st.integers(0, 6)), draw(st.integers(0, VOCAB - 1))
        got = list(self.session.generate(count, rows=rows, stop_ids={stop}))
        expected: dict[int, list[int]] = {i: [] for i in rows}
        for i, tokens in expected.items():
            while len(tokens) < count and stop not in tokens:
                last = self.rows[i].last
                assert last is not None
                tokens.append(last.index(max(last)))
                self.rows[i].read(tokens[-1])
        for i in range(len(self.rows)):
            tokens = expected.get(i, [])
            assert [int(t[i]) for t in got] == tokens + [-1] * (len(got) - len(tokens))

    def undo(self) -> None:
        snapshot, rows = self.kept
        self.session.restore(snapshot)
        self.rows = [row.copy() for row in rows]

    def save_and_load(self) -> None:
        other = Session(self.steps, len(self.rows), on_sleep=self.session.on_sleep)
        other.defers = self.session.defers
        with tempfile.TemporaryDirectory() as folder:
            self.session.save_state(Path(folder) / "state.safetensors")
            other.feed([[1, 2, 3, 4, 5]] * len(self.rows))  # forgotten by what follows
            other.load_state(Path(folder) / "state.safetensors")
        self.session = other

    def permute(self, draw: Callable[..., Any]) -> None:
        order = draw(st.permutations(range(len(self.rows))))
        callback = self.session.on_sleep
        self.session = self.session.select_rows(order)
        self.session.on_sleep = callback
        self.rows = [self.rows[i] for i in order]

    def act(self, action: str, draw: Callable[..., Any]) -> None:
        match action:
            case "feed":
                self.feed(draw, draw(st.sampled_from(["last", "all", "none"])))
            case "sleep":
                self.sleep(draw)
            case "rest":
                self.rest(draw)
            case "generate":
                self.generate(draw)
            case "snapshot":
                self.kept = (self.session.snapshot(), [row.copy() for row in self.rows])
            case "undo":
                self.undo()
            case "file":
                self.save_and_load()
            case "permute":
                self.permute(draw)

    def check(self) -> None:
        self.session.snapshot()  # what was deferred or lies in the background comes first
        arrays = self.steps.to_named_arrays(self.session._state)
        assert arrays["position"].tolist() == [row.position for row in self.rows]
        assert arrays["since"].tolist() == [len(row.window) for row in self.rows]
        assert arrays["since"].tolist() == self.session.since.tolist()
        assert arrays["0.memory"][:, 0].tolist() == [row.memory for row in self.rows]
        assert self.session._known.tolist() == [row.last is not None for row in self.rows]
        for i, row in enumerate(self.rows):
            ring = row.window + [0] * (row.window_size - len(row.window))
            assert arrays["0.ring"][i].tolist() == ring
            if row.last is not None:
                assert self.session._last[i].tolist() == row.last


ACTIONS = ["feed", "feed", "feed", "sleep", "rest", "generate", "snapshot", "undo", "file", "permute"]


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(1, 3), st.integers(1, 5))
def test_a_schedule_equals_single_rows(data: st.DataObject, batch: int, window: int) -> None:
    world = World(batch, window)
    world.session.defers = data.draw(st.booleans())
    for _ in range(data.draw(st.integers(1, 8))):
        world.act(data.draw(st.sampled_from(ACTIONS)), data.draw)
        if data.draw(st.booleans()):
            world.check()
    world.check()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, VOCAB - 1), max_size=30), st.data())
def test_the_split_does_not_matter(stream: list[int], data: st.DataObject) -> None:
    whole, parts = World(1, 4), World(1, 4)
    expected = whole.session.feed(stream, logits="all")
    places = st.lists(st.integers(0, len(stream)), max_size=6)
    cuts = [0, *sorted(data.draw(places)), len(stream)]
    parts.session.defers = True
    got = []
    for a, b in itertools.pairwise(cuts):
        got.append(parts.session.feed(stream[a:b], logits="all"))
        if data.draw(st.booleans()):
            parts.session.sleep(background=True, at_least=4)
    np.testing.assert_array_equal(np.concatenate(got, axis=1), expected)
    assert parts.session.stats.tokens_read == len(stream)
    assert parts.session.stats.sleeps == whole.session.stats.sleeps
    assert parts.slept == whole.slept == [0] * (len(stream) // 4)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_logits_keep_the_type_of_the_backend(dtype: str) -> None:
    session = Session(FakeSteps(dtype=dtype))
    assert session.feed([1, 2]).dtype == dtype
    assert session.feed([1, 2], logits="all").dtype == dtype
    assert session.feed([]).dtype == dtype
