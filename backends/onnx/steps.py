"""Wake and sleep of an exported program in ONNX Runtime: what a session drives. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sleepc.backends.onnx.manifest import Columns, Manifest, Replaced, State
from sleepc.runtime.steps import Array, BoolArray, FloatArray, IntArray, Logits, Signature

NUMPY = {"f64": np.float64, "f32": np.float32, "f16": np.float16, "i64": np.int64, "bool": np.bool_}


@dataclass
class OnnxState:
    """`values` are ONNX Runtime's, by state; those of one ring share an array [layers, B, H, W, ..] of `rings`, by the
    output that is written into it, and so can be written in place.
    """

    batch: int
    values: dict[str, Any]
    rings: dict[str, Array]


class OnnxSteps:
    """The `Steps` of an export. Raises UsageError where ONNX Runtime is missing or too old."""

    def __init__(self, folder: Path, manifest: Manifest, *, threads: int | None = None) -> None:
        self.folder, self.manifest = folder, manifest
        self.threads = threads or len(os.sched_getaffinity(0))
        self.states = {s.name: s for s in manifest.states}
        self._wake = self._session(manifest.wake.file)
        self._wake_inputs = [t.name for t in manifest.wake.inputs if t.name in self.states]
        self._wake_outputs = [t.name for t in manifest.wake.outputs]
        self._replaced = {s.wake.output: s.name for s in manifest.states if isinstance(s.wake, Replaced)}
        self._rings: dict[str, list[State]] = {}
        for state in manifest.states:
            if isinstance(state.wake, Columns):
                self._rings.setdefault(state.wake.output, []).append(state)

    @property
    def window(self) -> int:
        """L."""
        return self.manifest.window

    @property
    def vocab(self) -> int:
        """V."""
        return self.manifest.vocab

    def _session(self, file: str) -> Any:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        return ort.InferenceSession(str(self.folder / file), options, providers=["CPUExecutionProvider"])

    @cached_property
    def _sleep(self) -> Any:
        part = self.manifest.sleep_recurrent or self.manifest.sleep_replay
        return self._session(part.file)

    def new_state(self, batch: int) -> OnnxState:
        """The state of `batch` rows that have read nothing."""
        return self.from_named_arrays({s.name: np.zeros(_dims(s, batch), NUMPY[s.dtype]) for s in self.manifest.states})

    def wake(
        self, state: OnnxState, tokens: IntArray, lengths: IntArray, logits: Logits
    ) -> tuple[FloatArray | None, OnnxState]:
        """See `Steps.wake`."""
        binding = self._wake.io_binding()
        for name in self._wake_inputs:
            binding.bind_ortvalue_input(name, state.values[name])
        binding.bind_cpu_input("tokens", np.ascontiguousarray(tokens))
        binding.bind_cpu_input("lengths", np.ascontiguousarray(lengths))
        binding.bind_cpu_input("logits_at", _wanted(tokens, lengths, logits))
        for name in self._wake_outputs:
            binding.bind_output(name)
        self._wake.run_with_iobinding(binding)
        found = dict(zip(self._wake_outputs, binding.get_outputs(), strict=True))
        for output, name in self._replaced.items():
            state.values[name] = found[output]
        for output, states in self._rings.items():
            _write(state.rings[output], found[output].numpy(), found[states[0].wake.slots].numpy())  # type: ignore[union-attr]
        if logits == "none":
            return None, state
        out: FloatArray = found["logits"].numpy()
        out = out if out.dtype == np.float64 else out.astype(np.float32, copy=False)
        return (out[:, 0] if logits == "last" else out), state

    def sleep(self, state: OnnxState, rows: BoolArray) -> OnnxState:
        """See `Steps.sleep`."""
        if not rows.all():
            at = np.flatnonzero(rows)
            arrays = self.to_named_arrays(state)
            slept = self.to_named_arrays(self._slept(self.select_rows(state, at)))
            for name, value in slept.items():
                arrays[name][at] = value
            return self.from_named_arrays(arrays)
        return self._slept(state)

    def _slept(self, state: OnnxState) -> OnnxState:
        part = self.manifest.sleep_recurrent or self.manifest.sleep_replay
        binding = self._sleep.io_binding()
        for tensor in part.inputs:
            if tensor.name == "passes":
                binding.bind_cpu_input("passes", np.array(self.manifest.passes, np.int64))
            else:
                binding.bind_ortvalue_input(tensor.name, state.values[tensor.name])
        names = [t.name for t in part.outputs]
        for name in names:
            binding.bind_output(name)
        self._sleep.run_with_iobinding(binding)
        found = dict(zip(names, binding.get_outputs(), strict=True))
        for spec in self.manifest.states:
            if not isinstance(spec.sleep, Replaced):
                continue
            value = found[spec.sleep.output]
            if isinstance(spec.wake, Columns):
                state.rings[spec.wake.output][spec.wake.row] = value.numpy()
            else:
                state.values[spec.name] = value
        return state

    def select_rows(self, state: OnnxState, rows: IntArray) -> OnnxState:
        """See `Steps.select_rows`."""
        return self.from_named_arrays({name: value[rows] for name, value in self.to_named_arrays(state).items()})

    def signature(self) -> Signature:
        """See `Steps.signature`."""
        return {s.name: (s.dtype, s.dims) for s in self.manifest.states}

    def to_named_arrays(self, state: OnnxState) -> dict[str, Array]:
        """See `Steps.to_named_arrays`."""
        return {name: value.numpy().copy() for name, value in state.values.items()}

    def from_named_arrays(self, arrays: Mapping[str, Array]) -> OnnxState:
        """See `Steps.from_named_arrays`."""
        import onnxruntime as ort

        arrays = dict(arrays)
        rings: dict[str, Array] = {}
        for output, states in self._rings.items():
            rings[output] = np.stack([arrays[s.name] for s in states])
            for i, s in enumerate(states):
                arrays[s.name] = rings[output][i]
        values = {
            name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()
        }
        return OnnxState(len(arrays["position"]), values, rings)


def _dims(state: State, batch: int) -> tuple[int, ...]:
    return (batch, *(int(d) for d in state.dims[1:]))


def _wanted(tokens: IntArray, lengths: IntArray, logits: Logits) -> IntArray:
    """Places of the call's tokens whose logits are wanted, [B, M]."""
    rows, count = tokens.shape
    if logits == "last":
        return np.ascontiguousarray((lengths - 1).clip(0)[:, None])
    return np.tile(np.arange(count if logits == "all" else 0, dtype=np.int64), (rows, 1))


def _write(ring: Array, new: Array, slots: IntArray) -> None:
    """ring [layers, B, H, W, ..], new [B, layers*H, T, ..], slots [B, T], -1 for none: in place."""
    layers, batch, heads = ring.shape[:3]
    new = new.reshape(batch, layers, heads, *new.shape[2:])
    rows, tokens = np.nonzero(slots >= 0)
    ring[:, rows, :, slots[rows, tokens]] = new[rows, :, :, tokens]
