"""Wake and sleep of an exported program in ONNX Runtime: what a session drives. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sleepc.backends.arrays import NUMPY
from sleepc.backends.onnx.denormals import denormals_as_zero
from sleepc.backends.onnx.manifest import Columns, ExportManifest, ModelFile, Replaced, Tensor
from sleepc.backends.onnx.state import OnnxState, empty, from_arrays, put_rows, selected, write_columns
from sleepc.backends.tunable import available_threads
from sleepc.errors import SleepcError
from sleepc.ir.roles import SKIPPED, TAKEN
from sleepc.runtime.steps import Array, BoolArray, FloatArray, IntArray, Logits, Signature

SPINS: dict[str, dict[str, str]] = {"long": {}, "short": {"spin_duration_us": "20"}, "none": {"allow_spinning": "0"}}
"""How threads wait for work, as ONNX Runtime is told: as long as it does by itself, longer than a step's graph makes
them wait, or not at all, which leaves the processor to others at once.
"""
PIECE = 128  # tokens that a graph reads at once by default: as fast as more, in less memory


class OnnxSteps:
    """The `Steps` of an export. A subclass for another device has a way of its own to `open` graphs and to `place`
    values; `provider` is ONNX Runtime's name of what runs them, `piece` the tokens that a graph reads at once. Threads
    that have nothing to do look for more for a `spin` (a key of SPINS), and then sleep.
    """

    def __init__(
        self,
        folder: Path,
        manifest: ExportManifest,
        *,
        threads: int | None = None,
        spin: str = "long",
        provider: str = "CPUExecutionProvider",
        in_place: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder, self.manifest, self.provider = folder, manifest, provider
        self.passes: int | None = None  # of a sleep, instead of the program's own
        self.in_place = in_place  # raises SleepcError if a file is not the one that was checked
        self.threads, self.spin, self.piece = threads or available_threads(), spin, PIECE
        self._opened: dict[str, Any] = {}
        self._rings = {output: _slots_of(states[0].wake) for output, states in manifest.rings.items()}
        self.replaced = {s.name: s.wake.output for s in manifest.states if isinstance(s.wake, Replaced)}
        self.open(manifest.wake)

    @property
    def window(self) -> int:
        """L."""
        return self.manifest.window

    @property
    def vocab(self) -> int:
        """V."""
        return self.manifest.vocab

    @property
    def budgets(self) -> dict[int, tuple[int, ...]]:
        """See `Steps.budgets`."""
        return self.manifest.budgets

    # -- the runtime -----------------------------------------------------------------------------

    def open(self, graph: ModelFile) -> Any:
        """The session of a graph, opened once. Raises SleepcError if the file is not what the manifest says."""
        if graph.file not in self._opened:
            self.in_place()
            session = self.make_session(self.folder / graph.file)
            self.in_place()
            _check_signature(graph, session)
            self._opened[graph.file] = session
        return self._opened[graph.file]

    def make_session(self, path: Path) -> Any:
        """ONNX Runtime's session of a file. Raises SleepcError if it refuses it."""
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        for name, value in SPINS[self.spin].items():
            options.add_session_config_entry(f"session.intra_op.{name}", value)
        options.log_severity_level = 3
        # an arena keeps the memory of the longest call, and is no faster here
        options.enable_cpu_mem_arena = False
        # softmax leaves numbers of 1e-40, with which processors compute a hundred times slower than with 0
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        try:
            with denormals_as_zero():
                return ort.InferenceSession(str(path), options, providers=self.providers())
        except Exception as error:  # its errors have no common class of their own
            text = (str(error) or type(error).__name__).splitlines()[0]
            raise SleepcError(f"ONNX Runtime cannot open {path.name}: {text}", where=str(path.parent)) from error

    def providers(self) -> list[Any]:
        """What runs the graphs, as ONNX Runtime wants to be told."""
        return [self.provider]

    def place(self, array: Array) -> Any:
        """An array as ONNX Runtime's value, where graphs read it; here it is the array's own memory."""
        import onnxruntime as ort

        return ort.OrtValue.ortvalue_from_numpy(array)

    # -- steps -----------------------------------------------------------------------------------

    def new_state(self, batch: int) -> OnnxState:
        """The state of `batch` rows that have read nothing."""
        return empty(self.manifest, batch)

    def wake(
        self, state: OnnxState, tokens: IntArray, lengths: IntArray, logits: Logits
    ) -> tuple[FloatArray | None, OnnxState]:
        """See `Steps.wake`. Long calls are read in pieces: as fast, and the memory of a piece is all that it takes."""
        every = []
        last = np.zeros((len(lengths), 0 if logits == "none" else 1, self.vocab), np.float32)
        for at in range(0, tokens.shape[1], self.piece):
            part, have = tokens[:, at : at + self.piece], (lengths - at).clip(0, self.piece)
            ends = (lengths > at) & (lengths <= at + self.piece)
            wanted = {"last": int(ends.any()), "all": part.shape[1], "none": 0}[logits]
            out = self._read(state, part, have, wanted)
            if logits == "all":
                every.append(out)
            elif wanted:
                last = out if ends.all() else np.where(ends[:, None, None], out, last)
        if logits == "none":
            return None, state
        if logits == "last":
            return last[:, 0], state
        return np.concatenate(every, 1) if every else last[:, :0], state

    def _read(self, state: OnnxState, tokens: IntArray, lengths: IntArray, wanted: int) -> FloatArray:
        """One call of the graph, of at least one token: logits [B, M, V]."""
        with told(self.folder), denormals_as_zero():
            call = self._call(state)
            out = call.run(tokens, lengths, wanted)
            for output, slots in self._rings.items():
                write_columns(state.rings[output], call.new[output], call.new[slots])
        state.swap()
        return out

    def _call(self, state: OnnxState) -> _BoundRun:
        """The binding whose inputs are what the state is in this turn."""
        if state.bound[state.turn] is None:
            state.bound[state.turn] = _BoundRun(self, state)
        found: _BoundRun = state.bound[state.turn]
        return found

    def sleep(self, state: OnnxState, rows: BoolArray) -> OnnxState:
        """See `Steps.sleep`."""
        if not rows.any():
            return state
        graph = self.manifest.sleep
        session = self.open(graph)
        binding, every = session.io_binding(), bool(rows.all())
        given = {"passes": np.array(self.passes or self.manifest.passes, np.int64)}  # kept until the run has ended
        for tensor in graph.inputs:
            if tensor.name != "passes":
                array = state.arrays[tensor.name]
                given[tensor.name] = array if every else array[rows]
            binding.bind_ortvalue_input(tensor.name, self.place(given[tensor.name]))
        names = [t.name for t in graph.outputs]
        for name in names:
            binding.bind_output(name)
        with told(self.folder), denormals_as_zero():
            session.run_with_iobinding(binding)
        found = dict(zip(names, binding.get_outputs(), strict=True))
        for spec in self.manifest.states:
            if isinstance(spec.sleep, Replaced):
                put_rows(state, rows, spec.name, found[spec.sleep.output].numpy())
        return state

    def select_rows(self, state: OnnxState, rows: IntArray) -> OnnxState:
        """See `Steps.select_rows`."""
        return selected(self.manifest, state, rows)

    def positions(self, state: Any) -> IntArray:
        """See `Steps.positions`."""
        found: IntArray = state.arrays["position"].copy()
        return found

    def passes_taken(self, state: Any) -> IntArray | None:
        """See `Steps.passes_taken`."""
        if self.manifest.sleep_recurrent is None:
            return None
        counted = self.counted(state, TAKEN)
        passes = self.passes or self.manifest.passes
        return np.full(state.batch, passes, np.int64) if counted is None else counted

    def steps_skipped(self, state: Any) -> IntArray | None:
        """See `Steps.steps_skipped`."""
        return self.counted(state, SKIPPED)

    def counted(self, state: Any, name: str) -> IntArray | None:
        """A count [B] of the state, if it has it."""
        found: IntArray | None = state.arrays.get(name)
        return found if found is None else found.copy()

    def signature(self) -> Signature:
        """See `Steps.signature`."""
        return {s.name: (s.dtype, s.dims) for s in self.manifest.states}

    def to_named_arrays(self, state: OnnxState) -> dict[str, Array]:
        """See `Steps.to_named_arrays`."""
        return {name: array.copy() for name, array in state.arrays.items()}

    def from_named_arrays(self, arrays: Mapping[str, Array]) -> OnnxState:
        """See `Steps.from_named_arrays`."""
        return from_arrays(self.manifest, arrays)


class _BoundRun:
    """A run of wake.onnx, bound to a state's arrays: inputs to what it is, outputs to its spare ones. What depends on
    the number of tokens is bound again only when that changes. The state keeps this, and not the other way round, so
    that its memory is free when the last who uses it is gone.
    """

    def __init__(self, steps: OnnxSteps, state: OnnxState) -> None:
        graph = steps.manifest.wake
        self.session, self.place, self.batch = steps.open(graph), steps.place, state.batch
        self.binding = self.session.io_binding()
        given = list(state.arrays.items())
        for name in steps.replaced:
            for other, array in (*given, *((n, state.spare[n]) for n in steps.replaced if n != name)):
                if np.may_share_memory(state.spare[name], array):
                    raise shared(name, other)
        self.inputs = {t.name for t in graph.inputs}
        for name, array in state.arrays.items():
            self._input(name, array)
        for name, output in steps.replaced.items():
            self._output(output, state.spare[name])
        self.free = [t for t in graph.outputs if t.name not in {"logits", *steps.replaced.values()}]
        (self.logits,) = [t for t in graph.outputs if t.name == "logits"]
        self.sizes = (-1, -1)  # T and M
        self.given: dict[str, Array] = {}
        self.new: dict[str, Array] = {}

    def run(self, tokens: IntArray, lengths: IntArray, wanted: int) -> FloatArray:
        """Logits [B, `wanted`, V] of each row's last token (1), of all (T) or none (0); `new` is what else is new."""
        if self.sizes != (tokens.shape[1], wanted):
            self._bind(tokens.shape[1], wanted)
        self.given["tokens"][...] = tokens
        self.given["lengths"][...] = lengths
        if wanted == 1:
            np.maximum(lengths[:, None] - 1, 0, out=self.given["logits_at"])
        out = self._array(self.logits)  # whoever asked for it keeps it
        self._output(self.logits.name, out)
        self.session.run_with_iobinding(self.binding)
        return out if out.dtype == np.float64 else out.astype(np.float32, copy=False)

    def _bind(self, count: int, wanted: int) -> None:
        self.sizes = (count, wanted)
        self.given = {
            "tokens": np.zeros((self.batch, count), np.int64),
            "lengths": np.zeros(self.batch, np.int64),
            "logits_at": np.tile(np.arange(wanted, dtype=np.int64), (self.batch, 1)),
        }
        for name, array in self.given.items():
            self._input(name, array)
        self.new = {t.name: self._array(t) for t in self.free}
        for name, array in self.new.items():
            self._output(name, array)

    def _array(self, tensor: Tensor) -> Array:
        sizes = {"B": self.batch, "T": self.sizes[0], "M": self.sizes[1]}
        return np.empty([sizes[d] if isinstance(d, str) else d for d in tensor.dims], NUMPY[tensor.dtype])

    def _input(self, name: str, array: Array) -> None:
        if name in self.inputs:
            self.binding.bind_ortvalue_input(name, self.place(array))

    def _output(self, name: str, array: Array) -> None:
        self.binding.bind_ortvalue_output(name, self.place(array))


@contextmanager
def told(folder: Path) -> Iterator[None]:
    """What ONNX Runtime or numpy refuses of files that are not what they say; its errors have no common class."""
    try:
        yield
    except Exception as error:
        ours = type(error) in (IndexError, KeyError, TypeError, ValueError)
        if not ours and not type(error).__module__.startswith("onnxruntime"):
            raise
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SleepcError(f"ONNX Runtime cannot run the exported files: {text}", where=str(folder)) from error


def shared(name: str, other: str) -> SleepcError:
    """What to raise if a run would write a state's new value over memory that it also reads or writes."""
    return SleepcError(
        f"the new value of state {name} would be written into the memory of {other}: the runtime would give a wrong "
        "state, without an error",
        where=name,
        fix="Give every output of a run memory of its own (see the rules in onnx.json).",
    )


def _slots_of(change: object) -> str:
    assert isinstance(change, Columns)
    return change.slots


def _check_signature(graph: ModelFile, session: Any) -> None:
    """Are the graph's inputs and outputs those of the manifest?"""
    for what, tensors, values in (
        ("inputs", graph.inputs, session.get_inputs()),
        ("outputs", graph.outputs, session.get_outputs()),
    ):
        said = {t.name: (t.dtype, len(t.dims), [d for d in t.dims if isinstance(d, int)]) for t in tensors}
        found = {v.name: (_KINDS.get(v.type), len(v.shape), [d for d in v.shape if isinstance(d, int)]) for v in values}
        if said != found:
            odd = sorted(name for name in said.keys() | found.keys() if said.get(name) != found.get(name))
            raise SleepcError(f"{graph.file} has different {what} from what the manifest says: {', '.join(odd[:5])}")


_KINDS = {
    "tensor(double)": "f64",
    "tensor(float)": "f32",
    "tensor(float16)": "f16",
    "tensor(int64)": "i64",
    "tensor(int16)": "i16",
    "tensor(int8)": "i8",
    "tensor(uint8)": "u8",
    "tensor(bool)": "bool",
}
