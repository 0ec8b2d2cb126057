"""What a conversion is measured against: the same windows, without their memories."""

from __future__ import annotations

import numpy as np

from sleepc.runtime.steps import Array, BoolArray, FloatArray, IntArray, Logits, Signature, State, Steps


class SlidingSteps:
    """A program's steps with the memories of strategy `parallel` off: sliding window and sinks, nothing else.

    The mix m counts as 0 until a row's first sleep (semantics.md, section 4), so no row is ever told that it slept.
    """

    def __init__(self, steps: Steps) -> None:
        self.inner = steps

    @property
    def window(self) -> int:
        """L."""
        return self.inner.window

    @property
    def vocab(self) -> int:
        """V."""
        return self.inner.vocab

    def new_state(self, batch: int) -> State:
        """See `Steps.new_state`."""
        return self.inner.new_state(batch)

    def wake(
        self, state: State, tokens: IntArray, lengths: IntArray, logits: Logits
    ) -> tuple[FloatArray | None, State]:
        """See `Steps.wake`."""
        return self.inner.wake(state, tokens, lengths, logits)

    def sleep(self, state: State, rows: BoolArray) -> State:
        """Evict as the program does, and forget that anything was consolidated."""
        arrays = self.inner.to_named_arrays(self.inner.sleep(state, rows))
        arrays["slept"] = np.zeros_like(arrays["slept"])
        return self.inner.from_named_arrays(arrays)

    def select_rows(self, state: State, rows: IntArray) -> State:
        """See `Steps.select_rows`."""
        return self.inner.select_rows(state, rows)

    def signature(self) -> Signature:
        """See `Steps.signature`."""
        return self.inner.signature()

    def to_named_arrays(self, state: State) -> dict[str, Array]:
        """See `Steps.to_named_arrays`."""
        return self.inner.to_named_arrays(state)

    def from_named_arrays(self, arrays: dict[str, Array]) -> State:
        """See `Steps.from_named_arrays`."""
        return self.inner.from_named_arrays(arrays)
