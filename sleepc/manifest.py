"""sleepc.json: what an artifact holds, as data that is checked before anything is believed. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from sleepc.errors import SleepcError, UsageError
from sleepc.ir.roles import Role, Update, name_of, role_of_name
from sleepc.recipe import Recipe
from sleepc.sealed_json import FileKind, Strict, digest, read_sealed
from sleepc.whole_folder import moved_away

MANIFEST = "sleepc.json"
FORMAT = 3
MAX_MANIFEST = 64 << 20
MAKE = "`sleepc convert MODEL -o OUT` makes one."
RESTORE = "The artifact is damaged or was edited: convert the model again."
MAX_BLOCKS = 4096
KIND = FileKind("artifact", FORMAT, MAX_MANIFEST, "convert the model again", RESTORE)


def _inside(path: str) -> str:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\\" in path or not path:
        raise ValueError(f"{path!r} leads out of the artifact")
    return path


InsidePath = Annotated[str, AfterValidator(_inside)]
Sha256 = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
Dim = Annotated[int, Field(ge=0, lt=1 << 40)]
DtypeName = Literal["f64", "f32", "f16", "bf16", "i64", "i32", "i16", "i8", "u8", "bool"]


class GraphFile(Strict):
    """A graph's text. `before`: the hash of the same graph as older versions spelled it, if they could."""

    file: InsidePath
    sha256: Sha256
    before: Sha256 = ""


class StateEntry(Strict):
    """See ir.states.StateSpec. Format 1 has no roles. Of the sizes that have names, B is a call's, others a block's."""

    name: str
    role: Role | None = None
    part: str = ""
    dims: list[Dim | Annotated[str, Field(pattern="^[A-Z]$")]] = Field(min_length=1, max_length=8)
    dtype: DtypeName
    update: Update
    initial: float = Field(default=0, allow_inf_nan=False)

    def role_and_part(self) -> tuple[Role, str]:
        """What the state is; in format 1 by its name."""
        return (self.role, self.part) if self.role is not None else role_of_name(self.name)


class ClassEntry(Strict):
    """A block class."""

    wake: GraphFile
    sleep: GraphFile
    again: GraphFile | None = None
    states: list[StateEntry]


class BlockEntry(Strict):
    """A block: its class, its parameters by port, and from format 3 on the earlier block whose KV window it reads."""

    cls: str
    params: dict[str, str]
    ring: int | None = Field(default=None, ge=0, lt=MAX_BLOCKS, exclude_if=lambda ring: ring is None)


class LoopEntry(Strict):
    """See ir.program.Loop."""

    start: int = Field(ge=0)
    end: int = Field(ge=1)
    passes: int = Field(ge=2, le=64)
    given: GraphFile
    settle: float = Field(default=0, ge=0, lt=1, allow_inf_nan=False)


class LearnEntry(Strict):
    """See ir.program.Learn."""

    start: int = Field(ge=0)
    steps: int = Field(ge=0, le=64)
    lr: float = Field(ge=0, allow_inf_nan=False)
    clip: float = Field(gt=0, allow_inf_nan=False)
    step: GraphFile
    loss: Literal["next", "late", "span"] = "next"
    span: int = Field(default=0, ge=0)


class EncodeEntry(Strict):
    """See ir.program.Encode."""

    step: GraphFile


class WeightFile(Strict):
    """A safetensors file: inside the artifact (a relative path) or, by reference, elsewhere (an absolute one). One that
    is `packed` has what a quantised source has the parameters as.
    """

    path: str
    inside: bool
    size: int = Field(ge=8)
    header_sha256: Sha256
    packed: bool = False


class ParamEntry(Strict):
    """Where a parameter's values are: `file` counts from 0 in `Manifest.files`."""

    file: int = Field(ge=0)
    tensor: str
    dtype: DtypeName
    shape: list[Dim] = Field(max_length=8)
    sha256: Sha256
    new: bool = False


class Source(Strict):
    """Where the original came from. `weights_sha256` is of its parameters' values, whatever files they are in."""

    name: str
    folder: str = ""
    kind: Literal["huggingface", "module"]
    config_sha256: Sha256 = ""
    weights_sha256: Sha256 = ""
    versions: dict[str, str] = Field(default_factory=dict)


class Manifest(Strict):
    """The whole of sleepc.json; `sha256` is of everything else in it. Format 3 is format 2 with blocks that read the KV
    window of another one, and is written if there are such.
    """

    format: Literal[1, 2, 3] = 2
    sleepc: str
    level: Literal["STEP"] = "STEP"
    recipe: Recipe
    source: Source
    dtype: DtypeName
    vocab: int = Field(gt=0)
    hidden: int = Field(gt=0)
    max_positions: int | None = Field(gt=0)
    upto: int | None = Field(default=None, gt=0)
    beyond: int | None = Field(default=None, gt=0)
    embed: GraphFile
    head: GraphFile
    clock: GraphFile
    loop: LoopEntry | None = None
    learn: LearnEntry | None = Field(default=None, exclude_if=lambda entry: entry is None)  # older files have none
    encode: EncodeEntry | None = Field(default=None, exclude_if=lambda entry: entry is None)
    window: int = Field(gt=0)
    classes: dict[str, ClassEntry]
    layout: list[BlockEntry] = Field(min_length=1, max_length=MAX_BLOCKS)
    states: list[StateEntry]
    files: list[WeightFile]
    params: dict[str, ParamEntry]
    report: dict[str, Any] = Field(default_factory=dict)
    sha256: Sha256 = ""

    @model_validator(mode="after")
    def _roles(self) -> Manifest:
        for state in [*self.states, *(state for entry in self.classes.values() for state in entry.states)]:
            if (state.role is None) is not (self.format == 1) or name_of(*state.role_and_part()) != state.name:
                raise ValueError(f"state {state.name!r} has no role, or another name than its role gives it")
        return self

    @model_validator(mode="after")
    def _rings(self) -> Manifest:
        if any(block.ring is not None for block in self.layout) is not (self.format == 3):
            raise ValueError("blocks read the KV window of another one in format 3, and in no other")
        return self

    def sealed(self) -> Manifest:
        """The same with its own hash."""
        return self.model_copy(update={"sha256": digest(json.loads(self.model_dump_json()))})


# What a manifest says besides what the artifact computes: where its files are, what was measured, with which version.
BESIDE = {"sleepc", "source", "recipe", "files", "report", "sha256", "upto", "beyond"}


def identity_of(manifest: Manifest) -> str:
    """A hash of what the model computes: graphs, layout and weights, as they stand in the file.

    It is that of format 1, which has no roles (what a state is follows from the graphs) and an older spelling of masks,
    so that states of then belong to what is saved now.
    """
    data = manifest.model_dump(mode="json", exclude_unset=True, exclude=BESIDE) | {"format": 1}
    for state in [*data["states"], *(state for entry in data["classes"].values() for state in entry["states"])]:
        for key in ("role", "part", *(() if state.get("initial") else ("initial",))):
            state.pop(key, None)
    for entry in data["params"].values():
        del entry["file"]
    for graph in _graphs(data):
        graph["sha256"] = graph.pop("before", "") or graph["sha256"]
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _graphs(data: Any) -> Iterator[dict[str, Any]]:
    """Every entry of a graph's text in a manifest's data."""
    if isinstance(data, dict):
        if {"file", "sha256"} <= data.keys():
            yield data
        data = list(data.values())
    for each in data if isinstance(data, list) else ():
        yield from _graphs(each)


def read_manifest(folder: Path) -> Manifest:
    """sleepc.json, checked. Raises UsageError if it is not an artifact, or newer, SleepcError if damaged."""
    path = folder / MANIFEST
    if not path.is_file():
        moved = moved_away(folder)
        fix = f"A process that was killed left it as {moved}: move it back." if moved else MAKE
        raise UsageError(f"{folder} is not a sleepc artifact: it has no {MANIFEST}", fix=fix)
    manifest, found = read_sealed(path, KIND, Manifest)
    if found != manifest.sha256:
        raise SleepcError(f"{MANIFEST} was changed after it was written", where=str(path), fix=RESTORE)
    return manifest
