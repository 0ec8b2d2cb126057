"""What a backend offers to a session: steps over a state that only the backend understands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from sleepc.ir.roles import PREFIX

Logits: TypeAlias = Literal["last", "all", "none"]
IntArray: TypeAlias = npt.NDArray[np.int64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]
FloatArray: TypeAlias = npt.NDArray[np.floating[Any]]
Array: TypeAlias = npt.NDArray[Any]

State: TypeAlias = Any
"""A backend's own object: tensors on a device, arrays, handles. A session only passes it on."""

Signature: TypeAlias = dict[str, tuple[str, tuple[str | int, ...]]]
"""Name -> (dtype text such as "f32", "bf16", "i64", "bool"; dimensions, the first of them "B")."""

CLOCKS: Signature = {
    "position": ("i64", ("B",)),
    "since": ("i64", ("B",)),
    "slept": ("bool", ("B",)),
}
"""The arrays that every state has: position of the row's next token, tokens since its last sleep,
and whether any sleep has consolidated it."""

# Arrays that some states have, in addition to CLOCKS.
#   TAKEN          i64 [B]: how many passes each row's last sleep took, if that may differ from row to row
#   SKIPPED        i64 [B]: how many steps of gradient descent its sleeps have left out
#   PINNED         bool [B, L]: which tokens of the window the next sleep is to keep before all others
#   GAP + W        i64 [B, sinks + W], by slot of KV windows of length W, a token that is not to be seen; -1
#   N.KEPT + ..    [B, S, ..] of the pairs that block N keeps: TOKEN their numbers in the row's stream, SCORE the
#                  greatest float32 for what is pinned
#   N.RECORD + ..  [B, H, L, ..] of what block N's memory is to be written with
GAP, KEPT, RECORD = PREFIX["gap"], PREFIX["kept"], PREFIX["record"]
TOKEN, SCORE = KEPT + "token", KEPT + "score"


class Steps(Protocol):
    """The steps of one loaded program. B rows, T tokens of a call, a vocabulary of V tokens."""

    @property
    def window(self) -> int:
        """L: every L-th token of a row's stream since its last sleep is followed by its sleep."""

    @property
    def vocab(self) -> int:
        """V: token ids are 0 … V-1."""

    @property
    def budgets(self) -> Mapping[int, tuple[int, ...]]:
        """The slots of every KV head, by the number of the block; only of blocks that keep pairs."""

    def new_state(self, batch: int) -> State:
        """The state of `batch` rows that have read nothing."""

    def wake(
        self, state: State, tokens: IntArray, lengths: IntArray, logits: Logits
    ) -> tuple[FloatArray | None, State]:
        """Read tokens [B, T], row b holding `lengths[b]` of them, packed to the left.

        `lengths[b] <= window - since[b]`: a call never crosses a sleep. A row of length 0 keeps
        its state bit for bit. `state` is consumed and may be written in place. Places without a
        token hold id 0. Logits are float32 (float64 if the model is float64): "last" [B, V]
        after each row's last token of this call, "all" [B, T, V], "none" None; what stands if
        there is no token is not read, and the array is the caller's to keep.
        """

    def sleep(self, state: State, rows: BoolArray) -> State:
        """Consolidate and evict where rows [B] is true, and set `since` to 0 there.

        `state` is consumed and may be written in place; the other rows stay bit for bit.
        """

    def select_rows(self, state: State, rows: IntArray) -> State:
        """A copy of the rows given [n], in that order, repeats allowed; `state` stays usable."""

    def positions(self, state: State) -> IntArray:
        """The position of each row's next token [B]."""

    def passes_taken(self, state: State) -> IntArray | None:
        """How many passes over its window each row's last sleep took [B]; None if sleeps run no block again."""

    def steps_skipped(self, state: State) -> IntArray | None:
        """How many steps of gradient descent each row's sleeps have left out, since a gradient was not finite [B]; None
        if sleeps take none.
        """

    def signature(self) -> Signature:
        """Names, dtypes and shapes of the arrays that make up a state; CLOCKS are among them."""

    def to_named_arrays(self, state: State) -> dict[str, Array]:
        """The state as arrays by name (bf16 as uint16); `state` stays usable."""

    def from_named_arrays(self, arrays: dict[str, Array]) -> State:
        """The state that `to_named_arrays` took apart; it owns `arrays` from then on."""
