"""A model whose memory is known: after two tokens it expects what followed them last time, if that is in its reach."""

from __future__ import annotations

import numpy as np

from sleepc.runtime.steps import CLOCKS, Array, BoolArray, FloatArray, IntArray, Logits, Signature

State = dict[str, Array]
SURE = 9.0  # the logit of the token that is expected; all others have 0


class Recall:
    """Steps that keep the last `reach` tokens of a row, and forget what came before."""

    def __init__(self, reach: int, window: int = 8, vocab: int = 61) -> None:
        self.reach, self.window, self.vocab = reach, window, vocab
        self.budgets: dict[int, tuple[int, ...]] = {}

    def signature(self) -> Signature:
        return {**CLOCKS, "held": ("i64", ("B", self.reach))}

    def new_state(self, batch: int) -> State:
        clocks: State = {name: np.zeros(batch, np.bool_ if name == "slept" else np.int64) for name in CLOCKS}
        return {**clocks, "held": np.full((batch, self.reach), -1)}

    def wake(
        self, state: State, tokens: IntArray, lengths: IntArray, logits: Logits
    ) -> tuple[FloatArray | None, State]:
        every = np.zeros((*tokens.shape, self.vocab), np.float32)
        for row, length in enumerate(lengths):
            for at in range(length):
                held = state["held"][row]
                held[:-1], held[-1] = held[1:].copy(), tokens[row, at]
                every[row, at] = self.after(held)
        state["since"] += lengths
        state["position"] += lengths
        if logits == "none":
            return None, state
        return (every if logits == "all" else every[np.arange(len(lengths)), lengths - 1]), state

    def after(self, held: Array) -> FloatArray:
        """Logits [V] after the tokens `held` [reach], -1 in places without one."""
        logits = np.zeros(self.vocab, np.float32)
        places = np.flatnonzero((held[:-2] == held[-2]) & (held[1:-1] == held[-1]) & (held[:-2] >= 0))
        if len(places):
            logits[held[places[-1] + 2]] = SURE
        return logits

    def sleep(self, state: State, rows: BoolArray) -> State:
        state["since"][rows] = 0
        return state

    def positions(self, state: State) -> IntArray:
        return state["position"].copy()

    def passes_taken(self, state: State) -> IntArray | None:
        return None

    def steps_skipped(self, state: State) -> IntArray | None:
        return None

    def select_rows(self, state: State, rows: IntArray) -> State:
        return {name: array[rows] for name, array in state.items()}

    def to_named_arrays(self, state: State) -> dict[str, Array]:
        return dict(state)

    def from_named_arrays(self, arrays: dict[str, Array]) -> State:
        return arrays
