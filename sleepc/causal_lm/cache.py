"""What such a model carries from call to call: the state of its rows, under the interface of transformers' caches."""

from __future__ import annotations

import copy
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache

from sleepc.backends.training_steps import Tensors, TrainingSteps
from sleepc.errors import UsageError
from sleepc.runtime.batch import Packed
from sleepc.runtime.steps import BoolArray, IntArray

MODES: dict[bool, Literal["all", "last"]] = {True: "all", False: "last"}


class SleepCache(Cache):
    """The state of B rows, of one size at any length; a call that is given it changes it. Rows that have L tokens since
    their last sleep sleep before they read the next one.
    """

    def __init__(self, steps: TrainingSteps, rows: int) -> None:
        self.layers: list[Any] = []  # what others keep by layer
        self.steps, self.rows = steps, rows
        self.reset()

    def __repr__(self) -> str:
        return f"<sleepc cache of {self.rows} rows after {self.columns} places>"

    def __deepcopy__(self, memo: dict[int, Any]) -> SleepCache:
        other = copy.copy(self)
        other.batch_select_indices(torch.arange(self.rows))
        return other

    def reset(self) -> None:
        """Rows that have read nothing."""
        self._state: Tensors | None = self.steps.new_state(self.rows)
        self.since = np.zeros(self.rows, np.int64)
        self.columns = 0  # places that were read, padding among them

    # -- what transformers asks -------------------------------------------------------------------

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many places of `input_ids` it has seen, padding among them."""
        return self.columns

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: there is no longest stream."""
        return -1

    @property
    def batch_size(self) -> int:
        """B."""
        return self.rows

    @property
    def is_initialized(self) -> bool:
        """It always holds a state."""
        return True

    @property
    def is_croppable(self) -> bool:
        """No: what was read is in the memories."""
        return False

    @property
    def is_linear(self) -> list[bool]:
        """It is none that places of a prompt could be counted without."""
        return [False]

    def crop(self, tokens_to_remove: int) -> NoReturn:
        """Raises UsageError."""
        raise UsageError(
            "tokens cannot be taken back out of a state: they are in its memories",
            where="cache.crop",
            fix="Keep a copy of the cache from before (copy.deepcopy). Assisted decoding needs a KV cache.",
        )

    def update(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises UsageError."""
        fix = "Give it to the model that made it."
        raise UsageError("this cache holds no keys and values by layer", where="cache.update", fix=fix)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row b becomes what row beam_idx[b] was."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep copies of these rows, in this order."""
        at = indices.cpu().numpy().astype(np.int64)
        self._state = self.steps.select_rows(self.state, at)
        self.since, self.rows = self.since[at], len(at)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row so many times, copies side by side."""
        self.batch_select_indices(torch.arange(self.rows).repeat_interleave(repeats))

    # -- reading ---------------------------------------------------------------------------------

    @property
    def state(self) -> Tensors:
        """By full name. Raises UsageError if a call that was changing it did not end."""
        if self._state is None:
            fix = "Read from the beginning, with a new cache."
            raise UsageError("a call broke off while it changed this cache", where="cache", fix=fix)
        return self._state

    def read(self, steps: TrainingSteps, packed: Packed, *, every: bool = True) -> Tensor:
        """Wake over every row's tokens, with sleeps between them -> logits [B, T, V], or [B, 1, V] of the last place
        alone. After a place without a token they are those after the row's last token in this call; 0 before its first.
        """
        parts = _Parts(packed, self.since, every)
        done = np.zeros(self.rows, np.int64)
        while (done < packed.lengths).any():
            state, self._state = self._awake(steps, done < packed.lengths), None
            count = np.minimum(packed.lengths - done, steps.window - self.since)
            tokens, _ = packed.cut(done, count)
            ending = (count > 0) & (done + count == packed.lengths)
            want = MODES[every] if every or ending.any() else "none"
            out, self._state = steps.wake_tensors(state, self._tensor(tokens), self._tensor(count), want)
            if out is not None:
                parts.add(out, done, np.where(every | ending, count, 0))
            self.since, done = self.since + count, done + count
        self.columns += packed.tokens.shape[1]
        return parts.logits(torch.empty(0, steps.vocab, dtype=steps.program.dtype, device=steps.device))

    def _awake(self, steps: TrainingSteps, reading: BoolArray) -> Tensors:
        """The state after the sleeps that are due in rows that read on."""
        state, due = self.state, reading & (self.since == steps.window)
        if due.any():
            self._state = None
            state = steps.sleep(state, due)
            self.since = np.where(due, 0, self.since)
        return state

    def _tensor(self, array: IntArray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.steps.device)


class _Parts:
    """Logits of the calls that a read is made of, put together by the places of their tokens."""

    def __init__(self, packed: Packed, since: IntArray, every: bool) -> None:
        self.packed, self.every = packed, every
        rows, width = packed.tokens.shape
        self.even = bool((packed.lengths == width).all() and (since == since[0]).all())  # rows go alike
        self.found: list[Tensor] = []  # [B, T, V] each if they do, else [n, V]
        self.total, self.at = 1, np.zeros((rows, width + 1), np.int64)  # where a row's n-th token is in it; 0: none

    def add(self, out: Tensor, done: IntArray, count: IntArray) -> None:
        """Logits [B, T, V] after each row's next `count` tokens from `done` on, or [B, V] after the last of them."""
        if self.even:
            self.found.append(out if self.every else out[:, None])
            return
        rows, at = np.nonzero(np.arange(count.max()) < count[:, None])
        if not self.every:
            rows, at = np.flatnonzero(count), count[count > 0] - 1
        places = (rows, at) if self.every else (rows,)
        self.found.append(out[tuple(torch.from_numpy(each).to(out.device) for each in places)])
        self.at[rows, done[rows] + at + 1] = np.arange(self.total, self.total + len(rows))
        self.total += len(rows)

    def logits(self, empty: Tensor) -> Tensor:
        """[B, T, V], or [B, 1, V]; `empty` [0, V] is of their dtype."""
        if self.even and self.found:
            return self.found[0] if len(self.found) == 1 else torch.cat(self.found, 1)
        tokens, lengths = self.packed.tokens, self.packed.lengths[:, None]
        read = lengths  # how many tokens a row has read [B, 1], or after every place [B, T]
        if self.every:
            real = np.zeros(tokens.shape, np.int64)
            np.put_along_axis(real, self.packed.columns, (np.arange(tokens.shape[1]) < lengths).astype(np.int64), 1)
            read = real.cumsum(1)
        at = torch.from_numpy(np.take_along_axis(self.at, read, 1)).to(empty.device)
        return torch.cat([empty.new_zeros(1, empty.shape[1]), *self.found])[at]
