"""The state of an export's rows as arrays that a graph reads and writes where they are. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sleepc.backends.arrays import NUMPY
from sleepc.backends.onnx.manifest import Columns, ExportManifest, Replaced, StateTensor
from sleepc.runtime.steps import Array, BoolArray, IntArray


@dataclass
class OnnxState:
    """`arrays` are the state's by name. States of one ring are rows of one array of `rings` [layers, B, H, W, ..], by
    the output that is written into them. `spare` is where a step puts the new values of those that it replaces: a run
    never reads and writes one array. `turn` is 0 or 1, and changes with each swap; `bound` is what steps keep for
    either turn between calls.
    """

    batch: int
    arrays: dict[str, Array]
    rings: dict[str, Array]
    spare: dict[str, Array]
    turn: int = 0
    bound: list[Any] = field(default_factory=lambda: [None, None], repr=False)

    def swap(self) -> None:
        """New values become the state's, and the old ones are what is written next."""
        for name, new in self.spare.items():
            self.arrays[name], self.spare[name] = new, self.arrays[name]
        self.turn = 1 - self.turn


def empty(manifest: ExportManifest, batch: int) -> OnnxState:
    """The state of `batch` rows that have read nothing. Memory is taken when it is written."""

    def begin(spec: StateTensor, into: Array) -> None:
        if spec.initial:
            into[...] = spec.initial

    return _filled(manifest, batch, begin)


def from_arrays(manifest: ExportManifest, arrays: Mapping[str, Array]) -> OnnxState:
    """The state that these arrays are; they are copied."""

    def copy(spec: StateTensor, into: Array) -> None:
        into[...] = arrays[spec.name]

    return _filled(manifest, len(arrays["position"]), copy)


def selected(manifest: ExportManifest, state: OnnxState, rows: IntArray) -> OnnxState:
    """A copy of these rows, in this order, repeats allowed."""

    def take(spec: StateTensor, into: Array) -> None:
        np.take(state.arrays[spec.name], rows, axis=0, out=into, mode="clip")  # "raise" would buffer `out`

    return _filled(manifest, len(rows), take)


def _filled(manifest: ExportManifest, batch: int, fill: Callable[[StateTensor, Array], None]) -> OnnxState:
    """A state whose arrays are filled one by one."""
    rings: dict[str, Array] = {
        output: np.zeros((len(states), *shape_of(states[0], batch)), NUMPY[states[0].dtype])
        for output, states in manifest.rings.items()
    }
    arrays: dict[str, Array] = {}
    spare: dict[str, Array] = {}
    for spec in manifest.states:
        if isinstance(spec.wake, Columns):
            arrays[spec.name] = rings[spec.wake.output][spec.wake.row]
        else:
            arrays[spec.name] = np.zeros(shape_of(spec, batch), NUMPY[spec.dtype])
        if isinstance(spec.wake, Replaced):
            spare[spec.name] = np.zeros(shape_of(spec, batch), NUMPY[spec.dtype])
        fill(spec, arrays[spec.name])
    return OnnxState(batch, arrays, rings, spare)


def shape_of(spec: StateTensor, batch: int) -> tuple[int, ...]:
    """A state's shape."""
    return (batch, *(int(d) for d in spec.dims[1:]))


def write_columns(ring: Array, new: Array, slots: IntArray) -> None:
    """ring [layers, B, H, W, ..], new [B, layers*H, T, ..], slots [B, T], -1 for none: written in place."""
    layers, batch, heads = ring.shape[:3]
    new = new.reshape(batch, layers, heads, *new.shape[2:])
    if slots.size == 1:  # one row's next token, the case that has to be quick
        if slots[0, 0] >= 0:
            ring[:, 0, :, slots[0, 0]] = new[0, :, :, 0]
        return
    rows, tokens = np.nonzero(slots >= 0)
    ring[:, rows, :, slots[rows, tokens]] = new[rows, :, :, tokens]


def put_rows(state: OnnxState, rows: BoolArray, name: str, value: Array) -> None:
    """New values of these rows, in place."""
    if rows.all():
        state.arrays[name][...] = value
    else:
        state.arrays[name][rows] = value
