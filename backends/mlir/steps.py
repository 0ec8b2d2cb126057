"""Wake and sleep of an exported program in IREE: what a session drives. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sleepc.backends.arrays import NUMPY
from sleepc.backends.mlir.manifest import MOVED, NEW, ModuleManifest
from sleepc.backends.tunable import available_threads
from sleepc.errors import SleepcError
from sleepc.ir.roles import SKIPPED, TAKEN
from sleepc.runtime.steps import Array, BoolArray, FloatArray, IntArray, Logits, Signature

SCOPE = "model"
AGAIN = "Export again: `sleepc export ARTIFACT --to mlir --force`."
FAILURES = (RuntimeError, ValueError, IndexError, TypeError, KeyError)  # what IREE's Python calls its errors


@dataclass
class IreeState:
    """The arrays of every row by name, where IREE computes. Functions write into none of them, so rows may share."""

    rows: list[dict[str, Any]]


class IreeSteps:
    """The `Steps` of an export."""

    def __init__(
        self,
        folder: Path,
        manifest: ModuleManifest,
        *,
        threads: int | None = None,
        passes: int | None = None,
        in_place: Callable[[], None] = lambda: None,
    ) -> None:
        import iree.runtime as iree

        self.manifest, self._iree, self.passes = manifest, iree, passes or manifest.passes
        self._given = {name: [t.name for t in f.inputs] for name, f in manifest.functions.items()}
        self._made = {name: [t.name for t in f.outputs] for name, f in manifest.functions.items()}
        self._device = _device(iree, threads or available_threads())
        in_place()
        try:
            self._context = self._open(folder)
        except FAILURES as error:
            what = f"IREE cannot open {manifest.module} with {manifest.weights}: {_first_line(error)}"
            raise SleepcError(what, where=str(folder), fix=AGAIN) from error
        in_place()
        self._empty: dict[str, Any] | None = None
        self._dtypes = {s.name: s.dtype for s in manifest.states}

    def _open(self, folder: Path) -> Any:
        iree = self._iree
        instance = iree.VmInstance()
        parameters = iree.ParameterIndex()
        parameters.load(str(folder / self.manifest.weights), format="safetensors")
        provider = parameters.create_provider(scope=SCOPE)
        module = iree.VmModule.mmap(instance, str(folder / self.manifest.module))
        modules = [iree.create_hal_module(instance, self._device)]
        modules += [iree.create_io_parameters_module(instance, provider), module]
        self._functions = {name: module.lookup_function(name) for name in self.manifest.functions}
        absent = [name for name, found in self._functions.items() if found is None]
        if absent:
            raise RuntimeError(f"it has no function {absent[0]}")
        return iree.VmContext(instance, modules)

    def taking(self, passes: int) -> IreeSteps:
        """The same, whose sleeps take so many passes."""
        other = copy(self)
        other.passes = passes
        return other

    @property
    def window(self) -> int:
        """L."""
        return self.manifest.window

    @property
    def vocab(self) -> int:
        """V."""
        return self.manifest.vocab

    @property
    def budgets(self) -> Mapping[int, tuple[int, ...]]:
        """See `Steps.budgets`."""
        return self.manifest.budgets

    # -- the runtime -----------------------------------------------------------------------------

    def _run(self, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """A function of values by name -> what it gives, by name."""
        iree, function = self._iree, self._functions[name]
        arguments, found = iree.VmVariantList(len(self._given[name])), iree.VmVariantList(len(self._made[name]))
        for each in self._given[name]:
            arguments.push_ref(values[each])
        try:
            self._context.invoke(function, arguments, found)
            return {key: found.get_as_object(i, iree.HalBufferView) for i, key in enumerate(self._made[name])}
        except FAILURES as error:
            what = f"IREE cannot run {name}: {_first_line(error)}"
            raise SleepcError(what, where=self.manifest.module, fix=AGAIN) from error

    def _there(self, array: Array) -> Any:
        """An array as IREE's, which copies it."""
        return self._iree.asdevicearray(self._device, np.ascontiguousarray(array))._buffer_view

    def _back(self, value: Any) -> Array:
        """IREE's array as one that is the caller's to keep."""
        return np.array(self._iree.DeviceArray(self._device, value, implicit_host_transfer=True).to_host())

    # -- steps -----------------------------------------------------------------------------------

    def new_state(self, batch: int) -> IreeState:
        """The state of `batch` rows that have read nothing."""
        if self._empty is None:
            self._empty = {
                s.name: self._there(np.full((1, *map(int, s.dims[1:])), s.initial, NUMPY[s.dtype]))
                for s in self.manifest.states
            }
        return IreeState([dict(self._empty) for _ in range(batch)])

    def wake(
        self, state: IreeState, tokens: IntArray, lengths: IntArray, logits: Logits
    ) -> tuple[FloatArray | None, IreeState]:
        """See `Steps.wake`. Rows are read one after the other, and what is left of a row's tokens as a chunk whose rest
        changes nothing.
        """
        out = np.zeros((*tokens.shape, self.vocab) if logits == "all" else (len(lengths), self.vocab), np.float32)
        for b, count in enumerate(lengths.tolist()):
            row, at = state.rows[b], 0
            while at < count:
                many = 1 if count - at == 1 else min(self.manifest.chunk, count - at)
                found = self._read(row, tokens[b, at : at + many], logits, at + many == count)
                if logits == "all":
                    out[b, at : at + many] = found
                elif found is not None:
                    out[b] = found[-1]
                at += many
        return (None if logits == "none" else out), state

    def _read(self, row: dict[str, Any], tokens: IntArray, logits: Logits, ends: bool) -> FloatArray | None:
        """Tokens [n] of a row, which is changed -> their logits [n, V], those of the last one [1, V], or None."""
        count = len(tokens)
        name, room = ("token", 1) if count == 1 else ("chunk", self.manifest.chunk)
        call = {"tokens": np.zeros((1, room), np.int64), "lengths": np.array([count], np.int64)}
        call["tokens"][0, :count] = tokens
        given = {key: self._there(value) for key, value in call.items()}
        made = self._run(name, row | given)
        row.update({key: value for key, value in made.items() if key in row})
        if logits == "none" or (logits == "last" and not ends):
            return None
        if name == "chunk":
            made = self._run("logits" if logits == "all" else "last", made | given)
        return self._back(made["logits"])[0, :count]

    def sleep(self, state: IreeState, rows: BoolArray) -> IreeState:
        """See `Steps.sleep`."""
        for b in np.flatnonzero(rows):
            state.rows[b].update(self._slept(state.rows[b]))
        return state

    def _slept(self, row: dict[str, Any]) -> dict[str, Any]:
        """What a sleep changes of a row, pass after pass until all are taken or one has hardly changed anything."""
        new, taken, settle = self._run("sleep", row), 1, self.manifest.settle
        if "again" not in self._functions:
            return new
        while taken < self.passes:
            new |= self._run("again", self._refined(row, new))
            taken += 1
            if settle and self._back(new.pop(MOVED))[0] <= settle:
                break
        if "behind" in self._functions:
            new |= self._run("behind", self._refined(row, new))
        if settle:
            new[TAKEN] = self._there(np.array([taken], np.int64))
        return {name: value for name, value in new.items() if name in row}

    def _refined(self, row: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
        """What a further pass reads: the state before the sleep, and what was written last."""
        return {**row, **{f"{NEW}{name}": value for name, value in (row | new).items()}, "h": new.get("h")}

    def select_rows(self, state: IreeState, rows: IntArray) -> IreeState:
        """See `Steps.select_rows`."""
        return IreeState([dict(state.rows[b]) for b in rows.tolist()])

    def positions(self, state: IreeState) -> IntArray:
        """See `Steps.positions`."""
        return self._array(state, "position")

    def passes_taken(self, state: IreeState) -> IntArray | None:
        """See `Steps.passes_taken`."""
        if not self.manifest.loops:
            return None
        if any(s.name == TAKEN for s in self.manifest.states):
            return self._array(state, TAKEN)
        return np.full(len(state.rows), self.passes, np.int64)

    def steps_skipped(self, state: IreeState) -> IntArray | None:
        """See `Steps.steps_skipped`."""
        return self._array(state, SKIPPED) if any(s.name == SKIPPED for s in self.manifest.states) else None

    def signature(self) -> Signature:
        """See `Steps.signature`."""
        return {s.name: (s.dtype, s.dims) for s in self.manifest.states}

    def to_named_arrays(self, state: IreeState) -> dict[str, Array]:
        """See `Steps.to_named_arrays`."""
        return {s.name: self._array(state, s.name) for s in self.manifest.states}

    def from_named_arrays(self, arrays: Mapping[str, Array]) -> IreeState:
        """See `Steps.from_named_arrays`."""
        batch = len(arrays["position"])
        names = [s.name for s in self.manifest.states]
        return IreeState([{name: self._there(arrays[name][b : b + 1]) for name in names} for b in range(batch)])

    def _array(self, state: IreeState, name: str) -> Array:
        dtype = NUMPY[self._dtypes[name]]  # bytes come back from code without a sign, and are taken for i8
        return np.concatenate([self._back(row[name]).view(dtype) for row in state.rows])


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _device(iree: Any, threads: int) -> Any:
    """What computes on so many threads. Of more than one, all that a process opens compute on the same: IREE reads
    their number from flags of the process, once.
    """
    if threads == 1:
        return iree.get_device("local-sync")
    iree.flags.parse_flags(f"--task_topology_max_group_count={threads}")
    return iree.get_device("local-task")
