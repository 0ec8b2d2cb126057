"""onnx.json: what the files are, what goes in and out, and what the host has to do. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sleepc.backends.export_files import Dims, DtypeName, FilesManifest, StateArray, require
from sleepc.sealed_json import FileName, Strict

MANIFEST = "onnx.json"
FORMAT = 1
CALL = ("tokens", "lengths", "logits_at", "passes")  # inputs that are not state


class Unchanged(Strict):
    """A step leaves the state as it is."""

    kind: Literal["kept"] = "kept"


class Replaced(Strict):
    """The state's new value is this output."""

    kind: Literal["replaced"] = "replaced"
    output: str


class Columns(Strict):
    """Token t of row b goes into slot `slots`[b, t] of the state (-1: nowhere), from heads H*row to H*(row+1) of
    `output` [B, heads, T, ..], H being the state's heads: a ring is written in place.
    """

    kind: Literal["columns"] = "columns"
    output: str
    row: int = Field(ge=0, lt=1 << 20)
    slots: str


Change = Annotated[Unchanged | Replaced | Columns, Field(discriminator="kind")]


class Tensor(Strict):
    """An input or output. Named dimensions: B rows, T tokens of the call, M tokens whose logits are wanted."""

    name: str
    dtype: DtypeName
    dims: Dims


class StateTensor(StateArray):
    """A state tensor, and how a wake step and a sleep change it."""

    wake: Change
    sleep: Change


class ModelFile(Strict):
    """A graph and what goes in and out."""

    file: FileName
    inputs: list[Tensor]
    outputs: list[Tensor]


class ExportManifest(FilesManifest):
    """The export as a whole."""

    ops: str
    ep: str
    sleep_ops: str = "same"
    packed: bool = False  # calls of one token read a second copy of weights, in a source's 4 bits
    fast: bool = True  # of weights in few bits: rounded without a text
    size: str = ""
    max_loss: str = ""
    opsets: dict[str, int]
    wake: ModelFile
    wake_one: ModelFile | None = None  # the same for T = 1, for hosts that want a graph without sizes to ask for
    sleep_replay: ModelFile
    sleep_recurrent: ModelFile | None
    states: list[StateTensor]
    rules: list[str]

    @property
    def one_token(self) -> bool:
        """Is there a graph for calls of one token?"""
        return self.wake_one is not None

    @property
    def files(self) -> list[str]:
        """Every file that runs."""
        return [*(graph.file for graph in self.graphs), self.weights]

    @property
    def graphs(self) -> list[ModelFile]:
        """Every graph."""
        found = (self.wake, self.wake_one, self.sleep_replay, self.sleep_recurrent)
        return [graph for graph in found if graph is not None]

    @property
    def sleep(self) -> ModelFile:
        """The graph by which rows sleep."""
        return self.sleep_recurrent or self.sleep_replay

    @property
    def rings(self) -> dict[str, list[StateTensor]]:
        """States that are written in place, by the output that has what is new of them; in the order of rows."""
        found: dict[str, list[StateTensor]] = {}
        for state in self.states:
            if isinstance(state.wake, Columns):
                found.setdefault(state.wake.output, []).append(state)
        return {output: sorted(states, key=_row) for output, states in found.items()}

    @model_validator(mode="after")
    def _fits(self) -> ExportManifest:
        """Do names, shapes and types agree with each other?"""
        self.check_states(self.states)
        states = {s.name: s for s in self.states}
        for graph in self.graphs:
            for tensor in graph.inputs:
                known = tensor.name in CALL or _same(tensor, states.get(tensor.name))
                require(known, f"{graph.file} has an input {tensor.name} that is not a state")
            for side in (graph.inputs, graph.outputs):
                require(len({t.name for t in side}) == len(side), f"{graph.file} has two values of one name")
        known_sizes = all(d in ("B", "T", "M") for t in self.wake.outputs for d in t.dims if isinstance(d, str))
        require(known_sizes, f"{self.wake.file} has an output of a size that nobody knows")
        require(("logits", ("B", "M", self.vocab)) in {(t.name, t.dims) for t in self.wake.outputs}, "no logits")
        if self.wake_one is not None:
            same = [t.name for t in self.wake_one.outputs] == [t.name for t in self.wake.outputs]
            require(same, f"{self.wake_one.file} and {self.wake.file} have different outputs")
        for state in self.states:
            require(not isinstance(state.sleep, Columns), f"a sleep writes columns of {state.name}")
            self._check_change(state, state.wake, self.wake)
            self._check_change(state, state.sleep, self.sleep)
        for output, ring in self.rings.items():
            _check_ring(output, ring, {t.name: t for t in self.wake.outputs})
        return self

    def _check_change(self, state: StateTensor, change: Change, graph: ModelFile) -> None:
        if isinstance(change, Replaced):
            output = next((t for t in graph.outputs if t.name == change.output), None)
            require(_same(output, state), f"{graph.file} has no output {change.output} like {state.name}")


def _row(state: StateTensor) -> int:
    return state.wake.row if isinstance(state.wake, Columns) else 0


def _same(tensor: Tensor | None, state: StateTensor | None) -> bool:
    """Are they there, and of one type and shape?"""
    return tensor is not None and state is not None and (tensor.dtype, tensor.dims) == (state.dtype, state.dims)


def _check_ring(output: str, ring: list[StateTensor], outputs: dict[str, Tensor]) -> None:
    """States [B, H, W, ..] of one kind, whose new columns stand side by side in an output [B, layers*H, T, ..]."""
    first, slots = ring[0], {s.wake.slots for s in ring if isinstance(s.wake, Columns)}
    require([_row(s) for s in ring] == list(range(len(ring))), f"rows of {output} are missing")
    require({(s.dtype, s.dims) for s in ring} == {(first.dtype, first.dims)}, f"states of {output} differ")
    require(len(first.dims) >= 3 and len(slots) == 1, f"{output} is not written by one tensor of slots")
    (name,) = slots
    at, new = outputs.get(name), outputs.get(output)
    require(at is not None and (at.dtype, at.dims) == ("i64", ("B", "T")), f"there are no slots {name}")
    heads = int(first.dims[1]) * len(ring)
    wanted = (first.dtype, ("B", heads, "T", *first.dims[3:]))
    require(new is not None and (new.dtype, new.dims) == wanted, f"{output} is not of its states' shape")
