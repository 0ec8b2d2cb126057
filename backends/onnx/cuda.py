"""Steps whose state stays on a device between calls: no state is copied to the host and back. Imports no torch.

Every state that a step replaces has two places on the device. A step reads from one and writes to the other, and then
they change roles: a graph that wrote where it reads would be wrong as soon as the runtime reorders.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sleepc.backends.arrays import NUMPY
from sleepc.backends.onnx.denormals import denormals_as_zero
from sleepc.backends.onnx.manifest import Columns, ExportManifest, ModelFile, Replaced
from sleepc.backends.onnx.state import shape_of
from sleepc.backends.onnx.steps import OnnxSteps, shared, told
from sleepc.errors import UsageError
from sleepc.runtime.steps import Array, BoolArray, FloatArray, IntArray, Logits, State

CUDA = "CUDAExecutionProvider"
# TF32 rounds the factors of float32 products to 10 bits, which is not what a float32 export promises.
OPTIONS: dict[str, dict[str, str]] = {CUDA: {"use_tf32": "0"}}


@dataclass
class DeviceState:
    """`places` are one or two values of the runtime's by state, `at` says which one is the state's. `bound` is what
    steps keep between calls, by graph and by `at`.
    """

    batch: int
    places: dict[str, list[Any]]
    at: dict[str, int]
    bound: dict[Any, Any] = field(default_factory=dict, repr=False)

    def now(self, name: str) -> Any:
        """Where the state is."""
        return self.places[name][self.at[name]]

    def spare(self, name: str) -> Any:
        """Where its next value goes."""
        return self.places[name][1 - self.at[name]]

    def swap(self, names: Iterable[str]) -> None:
        """The next values of these have become the state's."""
        for name in names:
            self.at[name] = 1 - self.at[name]


class DeviceSteps(OnnxSteps):
    """The `Steps` of an export whose graphs give whole states (`--ep cuda`, `--ops portable`), over a DeviceState."""

    def __init__(self, folder: Path, manifest: ExportManifest, *, provider: str = CUDA, **options: Any) -> None:
        if any(isinstance(s.wake, Columns) for s in manifest.states):
            raise UsageError(
                "this export's windows are written by the host",
                fix="Export again with --ep cuda.",
            )
        self.device = "cuda" if provider == CUDA else "cpu"
        super().__init__(folder, manifest, provider=provider, **options)
        self._slept = {s.name: s.sleep.output for s in manifest.states if isinstance(s.sleep, Replaced)}

    def providers(self) -> list[Any]:
        """With their options; what a provider has no kernel for is run by the CPU's."""
        return [(self.provider, OPTIONS.get(self.provider, {}))]

    def new_state(self, batch: int) -> State:
        """The state of `batch` rows that have read nothing."""
        specs = self.manifest.states
        return self.from_named_arrays({s.name: np.full(shape_of(s, batch), s.initial, NUMPY[s.dtype]) for s in specs})

    def from_named_arrays(self, arrays: Mapping[str, Array]) -> State:
        """See `Steps.from_named_arrays`."""
        import onnxruntime as ort

        places: dict[str, list[Any]] = {}
        for spec in self.manifest.states:
            array = np.ascontiguousarray(arrays[spec.name])
            replaced = spec.name in self.replaced or spec.name in self._slept
            places[spec.name] = [
                ort.OrtValue.ortvalue_from_shape_and_type(array.shape, array.dtype.type, self.device, 0)
                for _ in range(1 + replaced)
            ]
            places[spec.name][0].update_inplace(array)
        return DeviceState(len(arrays["position"]), places, dict.fromkeys(places, 0))

    def to_named_arrays(self, state: State) -> dict[str, Array]:
        """See `Steps.to_named_arrays`."""
        return {name: state.now(name).numpy().copy() for name in state.places}

    def select_rows(self, state: State, rows: IntArray) -> State:
        """See `Steps.select_rows`."""
        return self.from_named_arrays({name: array[rows] for name, array in self.to_named_arrays(state).items()})

    def wake(
        self, state: State, tokens: IntArray, lengths: IntArray, logits: Logits
    ) -> tuple[FloatArray | None, State]:
        """See `Steps.wake`."""
        rows, count = tokens.shape
        wanted = np.tile(np.arange({"last": 1, "all": count, "none": 0}[logits]), (rows, 1))
        if count == 0:
            out = np.zeros((*wanted.shape, self.vocab), np.float32)
        else:
            if logits == "last":
                wanted = np.maximum(lengths[:, None] - 1, 0)
            given = {"tokens": tokens, "lengths": lengths, "logits_at": wanted}
            out = self._run(self.manifest.wake, state, self.replaced, given)["logits"]
        if logits == "none":
            return None, state
        return (out[:, 0] if logits == "last" else out), state

    def sleep(self, state: State, rows: BoolArray) -> State:
        """See `Steps.sleep`. Some rows but not all go by way of the host."""
        if not rows.any():
            return state
        if not rows.all():
            whole = self.to_named_arrays(state)
            part = self.from_named_arrays({name: array[rows] for name, array in whole.items()})
            for name, array in self.to_named_arrays(self.sleep(part, np.ones(part.batch, np.bool_))).items():
                whole[name][rows] = array
                state.now(name).update_inplace(whole[name])
            return state
        passes = np.array(self.passes or self.manifest.passes, np.int64)
        self._run(self.manifest.sleep, state, self._slept, {"passes": passes})
        return state

    def positions(self, state: Any) -> IntArray:
        """See OnnxSteps."""
        found: IntArray = state.now("position").numpy().copy()
        return found

    def counted(self, state: Any, name: str) -> IntArray | None:
        """See OnnxSteps."""
        return state.now(name).numpy().copy() if name in state.places else None

    def _run(
        self, graph: ModelFile, state: DeviceState, replaced: Mapping[str, str], given: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Run a graph on a state, whose new values become the state's; other outputs as arrays."""
        binding, others = self._binding(graph, state, replaced)
        names = {t.name for t in graph.inputs}
        for name, array in given.items():
            if name in names:
                binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name in others:
            binding.bind_output(name, "cpu")
        with told(self.folder), denormals_as_zero():
            self.open(graph).run_with_iobinding(binding)
        state.swap(replaced)
        found = binding.get_outputs()[len(replaced) :]  # in the order in which they were bound
        return {name: value.numpy() for name, value in zip(others, found, strict=True)}

    def _binding(self, graph: ModelFile, state: DeviceState, replaced: Mapping[str, str]) -> tuple[Any, list[str]]:
        """The binding for where the state is now, and the outputs that are not states."""
        key = (graph.file, tuple(state.at.values()))
        if key not in state.bound:
            binding = self.open(graph).io_binding()
            for tensor in graph.inputs:
                if tensor.name in state.places:
                    binding.bind_ortvalue_input(tensor.name, state.now(tensor.name))
            taken = {state.now(name).data_ptr(): name for name in state.places}
            for name, output in replaced.items():
                at = state.spare(name).data_ptr()
                if at in taken:
                    raise shared(name, taken[at])
                taken[at] = name
                binding.bind_ortvalue_output(output, state.spare(name))
            others = {t.name for t in graph.outputs} - set(replaced.values())
            state.bound[key] = binding, sorted(others)
        found: tuple[Any, list[str]] = state.bound[key]
        return found
