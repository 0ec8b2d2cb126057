"""mlir.json: what the files are, and what every function takes and gives. Imports no torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from sleepc.backends.export_files import Dim, DtypeName, FilesManifest, StateArray, require
from sleepc.sealed_json import FileName, Strict

MANIFEST = "mlir.json"
FUNCTIONS = ("token", "chunk", "logits", "last", "sleep")
PASSES = ("again", "behind")  # of sleeps of several passes
CALLS = ("tokens", "lengths")
PRECISION = "fp32"
NEW, MOVED = "new.", "moved"  # before a state that a pass has written; how much that changed it
Sizes = Annotated[tuple[Annotated[int, Field(ge=0, lt=1 << 31)], ...], Field(max_length=8)]


class RowTensor(Strict):
    """An input or output, of one row."""

    name: str
    dtype: DtypeName
    sizes: Sizes


class FunctionFile(Strict):
    """A function of the module. Its text, if it was kept, takes the `parameters` and then the `inputs`, in this order;
    compiled, it takes the inputs, and reads the parameters from the file of weights.
    """

    text: FileName | None = None
    parameters: list[str]
    inputs: list[RowTensor]
    outputs: list[RowTensor]


class ModuleManifest(FilesManifest):
    """The export as a whole: `module` is the code for processors (`arch`) of a `machine` (x86_64 …) that have all
    `features`, `others` that for other devices; `chunk` tokens are read at once; `loops`: sleeps run blocks again,
    until a pass changes memories by no more than the share `settle`.
    """

    module: FileName
    arch: str
    machine: str
    features: list[str]
    others: list[FileName] = Field(default_factory=list)
    versions: dict[str, str]
    chunk: int = Field(gt=0, le=1 << 16)
    loops: bool = False
    settle: float = Field(default=0, ge=0, lt=1)
    functions: dict[str, FunctionFile]
    states: list[StateArray]

    @property
    def files(self) -> list[str]:
        """Every file that was written, but for this."""
        texts = [function.text for function in self.functions.values() if function.text]
        return [self.module, *self.others, *texts, self.weights]

    @model_validator(mode="after")
    def _fits(self) -> ModuleManifest:
        """Do functions and states agree with each other?"""
        self.check_states(self.states)
        require(self.precision == PRECISION, "another precision")
        optional = set(self.functions) - set(FUNCTIONS)
        require(
            optional <= set(PASSES) and set(self.functions) >= set(FUNCTIONS), "other functions than a session calls"
        )
        require("again" in optional or not (optional or self.loops), "no function for a further pass")
        states = {s.name: (s.dtype, (1, *s.dims[1:])) for s in self.states}
        for name in ("token", "chunk", "sleep", *optional):
            inputs = {t.name: (t.dtype, t.sizes) for t in self.functions[name].inputs}
            require(inputs.items() >= states.items(), f"{name} does not take the states")
            calls = {"token": set(CALLS), "chunk": set(CALLS), "sleep": set()}.get(name)
            require(calls is None or inputs.keys() == states.keys() | calls, f"{name} takes more than a session has")
            for tensor in self.functions[name].outputs:
                same = states.get(tensor.name, (tensor.dtype, tensor.sizes)) == (tensor.dtype, tensor.sizes)
                require(same, f"{name} gives another {tensor.name} than the state is")
        self._check_logits()
        self._check_passes(states)
        return self

    def _check_passes(self, states: dict[str, tuple[str, tuple[Dim, ...]]]) -> None:
        again = self.functions.get("again")
        moved = again is not None and any(t.name == MOVED for t in again.outputs)
        require(moved or not self.settle, "no pass says how much it changes")
        names = {t.name for t in self.functions["sleep"].outputs}
        for name in PASSES:
            for tensor in self.functions[name].inputs if name in self.functions else ():
                state = tensor.name.removeprefix(NEW)
                known = states.get(state) == (tensor.dtype, tensor.sizes) if state in states else tensor.name in names
                require(known, f"{name} takes a {tensor.name} that no pass gives")

    def _check_logits(self) -> None:
        chunk = {t.name: t for t in self.functions["chunk"].outputs}
        for name, count in (("token", 1), ("chunk", self.chunk)):
            given = {t.name: (t.dtype, t.sizes) for t in self.functions[name].inputs}
            calls = dict(zip(CALLS, (("i64", (1, count)), ("i64", (1,))), strict=True))
            require(given.items() >= calls.items(), f"{name} does not take tokens")
        for name, count in (("token", 1), ("last", 1), ("logits", self.chunk)):
            found = [t.sizes for t in self.functions[name].outputs if t.name == "logits"]
            require(found == [(1, count, self.vocab)], f"{name} gives no logits")
        for name in ("last", "logits"):
            read = [t.name for t in self.functions[name].inputs if t.name != "lengths"]
            require(set(read) <= set(chunk), f"{name} reads what chunk does not give")
