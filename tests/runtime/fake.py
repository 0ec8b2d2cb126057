"""A model small enough to be followed by hand, twice: as array steps and as a plain row.

Its memory is a hash of all windows that sleep has closed, its logits are a hash of the memory, the
position and the tokens of the open window in order. One token too many, too few, in the wrong row
or on the wrong side of a sleep changes them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from sleepc.runtime.steps import CLOCKS, Array, BoolArray, FloatArray, IntArray, Logits, Signature

PRIME = 7919
GARBAGE = 1e30  # what stands where no token is: nobody may read it


def logits_of(memory: int, position: int, window: list[int], vocab: int) -> list[float]:
    """Whole numbers below PRIME, exact in float32."""
    value = memory * 31 + position
    for token in window:
        value = (value * 53 + token + 1) % PRIME
    return [float((value * (word + 2) + word * word) % PRIME) for word in range(vocab)]


def closed(memory: int, window: list[int]) -> int:
    """The memory after a sleep."""
    for token in window:
        memory = (memory * 37 + token + 1) % PRIME
    return (memory + 11) % PRIME


@dataclass
class Row:
    """One row, read token by token."""

    window_size: int
    vocab: int
    memory: int = 0
    position: int = 0
    window: list[int] = field(default_factory=list)
    sleeps: int = 0
    last: list[float] | None = None

    def read(self, token: int) -> list[float]:
        self.window.append(token)
        self.position += 1
        self.last = logits_of(self.memory, self.position, self.window, self.vocab)
        if len(self.window) == self.window_size:
            self.sleep()
        return self.last

    def sleep(self) -> None:
        if self.window:
            self.memory, self.window = closed(self.memory, self.window), []
            self.sleeps += 1

    def copy(self) -> Row:
        return Row(**{**self.__dict__, "window": list(self.window)})


@dataclass
class FakeState:
    """Arrays, and whether a step has consumed them."""

    arrays: dict[str, Array]
    consumed: bool = False


class FakeSteps:
    """Steps that write in place, consume their state, and complain about every broken promise."""

    def __init__(self, window: int = 4, vocab: int = 11, dtype: str = "float32", recurs: bool = False) -> None:
        self.window, self.vocab, self.dtype = window, vocab, np.dtype(dtype)
        self.budgets: dict[int, tuple[int, ...]] = {}
        self.asked: list[Logits] = []  # what each wake was asked for
        self.calls: list[list[int]] = []  # the lengths of each wake
        self.recurs = recurs
        self.fail_in = ""  # "wake" or "sleep": stop half way with KeyboardInterrupt

    def positions(self, state: FakeState) -> IntArray:
        assert not state.consumed
        return state.arrays["position"].copy()

    def signature(self) -> Signature:
        own: Signature = {
            "0.memory": ("bf16", ("B", 1)),
            "0.ring": ("i64", ("B", self.window)),
            "1.S": ("f32", ("B", 2, 3)),
        }
        if self.recurs:
            own["passes"] = ("i64", ("B",))
        return {**CLOCKS, **own}

    def new_state(self, batch: int) -> FakeState:
        kinds = {"i64": np.int64, "bool": np.bool_, "bf16": np.uint16, "f32": np.float32}
        arrays: dict[str, Array] = {
            name: np.zeros([batch if dim == "B" else int(dim) for dim in dims], kinds[dtype])
            for name, (dtype, dims) in self.signature().items()
        }
        return FakeState(arrays)

    def wake(
        self, state: FakeState, tokens: IntArray, lengths: IntArray, logits: Logits
    ) -> tuple[FloatArray | None, FakeState]:
        a = self._consume(state)
        batch, width = tokens.shape
        assert tokens.dtype == lengths.dtype == np.int64
        assert lengths.min() >= 0
        assert 0 < lengths.max() == width
        assert (lengths <= self.window - a["since"]).all(), "a call crosses a sleep"
        assert ((tokens >= 0) & (tokens < self.vocab)).all()
        assert (tokens[np.arange(width) >= lengths[:, None]] == 0).all(), "padding is not 0"
        self.asked.append(logits)
        self.calls.append(lengths.tolist())
        every = np.full((batch, width, self.vocab), GARBAGE, self.dtype)
        for row in range(batch):
            for at in range(lengths[row]):
                a["0.ring"][row, a["since"][row]] = tokens[row, at]
                a["since"][row] += 1
                a["position"][row] += 1
                if self.fail_in == "wake":
                    raise KeyboardInterrupt
                window = a["0.ring"][row, : a["since"][row]].tolist()
                memory, position = int(a["0.memory"][row, 0]), int(a["position"][row])
                every[row, at] = logits_of(memory, position, window, self.vocab)
        if logits == "none":
            return None, FakeState(a)
        last = np.where(lengths[:, None] > 0, every[np.arange(batch), lengths - 1], self.dtype.type(GARBAGE))
        return (every if logits == "all" else last), FakeState(a)

    def sleep(self, state: FakeState, rows: BoolArray) -> FakeState:
        a = self._consume(state)
        assert rows.dtype == np.bool_
        for row in np.flatnonzero(rows):
            assert a["since"][row] > 0, "a row without tokens sleeps"
            window = a["0.ring"][row, : a["since"][row]].tolist()
            a["0.memory"][row, 0] = closed(int(a["0.memory"][row, 0]), window)
            if self.fail_in == "sleep":
                raise KeyboardInterrupt
            a["0.ring"][row], a["since"][row], a["slept"][row] = 0, 0, True
            a["1.S"][row] += np.float32(0.1)
            if self.recurs:
                a["passes"][row] = len(window)
        return FakeState(a)

    def passes_taken(self, state: FakeState) -> IntArray | None:
        assert not state.consumed
        return state.arrays["passes"].copy() if self.recurs else None

    def steps_skipped(self, state: FakeState) -> IntArray | None:
        assert not state.consumed
        return state.arrays["skipped"].copy() if "skipped" in state.arrays else None

    def select_rows(self, state: FakeState, rows: IntArray) -> FakeState:
        assert not state.consumed
        return FakeState({name: array[rows] for name, array in state.arrays.items()})

    def to_named_arrays(self, state: FakeState) -> dict[str, Array]:
        assert not state.consumed
        return dict(state.arrays)

    def from_named_arrays(self, arrays: dict[str, Array]) -> FakeState:
        assert arrays.keys() == self.signature().keys()
        return FakeState(arrays)

    def _consume(self, state: FakeState) -> dict[str, Array]:
        assert not state.consumed, "a state is used twice"
        state.consumed = True
        return state.arrays
