"""The files of an export: the JSON that says what they are, and the folder, checked before anything of it is believed.
Imports no torch.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field

from sleepc.backends.export import Export, check_still_of
from sleepc.errors import SleepcError, SleepcWarning, UsageError
from sleepc.held_file import HeldFile, is_inside, load_whole, refuse_links_out
from sleepc.manifest import MANIFEST as ARTIFACT
from sleepc.runtime.steps import CLOCKS, TOKEN
from sleepc.sealed_json import FileKind, FileName, Strict, digest, read_sealed

MOST = 16 << 20  # bytes of a manifest
NUMBERS = 1 << 40  # of a state

DtypeName = Annotated[str, Field(pattern=r"^(f64|f32|f16|i64|i16|i8|u8|bool)$")]
Dim = Annotated[int, Field(ge=0, lt=1 << 31)] | Annotated[str, Field(pattern=r"^[A-Za-z]\w*$")]
Dims = Annotated[tuple[Dim, ...], Field(max_length=8)]


class StateArray(Strict):
    """A state tensor, all of it `initial` at first."""

    name: str
    dtype: DtypeName
    dims: Dims
    initial: float = Field(default=0, allow_inf_nan=False)


class FilesManifest(Strict):
    """What every export says. `sinks` is how many tokens attention keeps forever; `replays` says that a sleep of
    another number of `passes` has a meaning: what is written again is corrected, and no block runs again. `upto`:
    beyond so many tokens the original would compute with other factors. `budgets`: the slots of every KV head, by
    block.
    """

    format: Literal[1] = 1
    sleepc: str
    identity: str
    precision: str
    vocab: int = Field(gt=0)
    window: int = Field(gt=0)
    sinks: int = Field(default=0, ge=0)
    upto: int | None = Field(default=None, gt=0)
    passes: int = Field(ge=1, le=64)
    replays: bool = False
    weights: FileName
    weights_size: int = Field(ge=0)
    budgets: dict[int, tuple[int, ...]] = Field(default_factory=dict)
    report: dict[str, Any]
    hashes: dict[FileName, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field(default_factory=dict)
    sha256: str = ""  # of everything else in the manifest

    @property
    def files(self) -> list[str]:
        """Every file that runs."""
        raise NotImplementedError

    def sealed(self, hashes: dict[str, str]) -> Self:
        """The same with the sha256 of its files, and its own."""
        whole = self.model_copy(update={"hashes": hashes})
        return whole.model_copy(update={"sha256": digest(json.loads(whole.model_dump_json()))})

    def check_states(self, states: Sequence[StateArray]) -> None:
        """Do hashes, states, budgets and clocks agree with each other? ValueError if they do not."""
        known = {s.name: s for s in states}
        require(not self.hashes or set(self.hashes) == set(self.files), "hashes of other files")
        require(len(known) == len(states), "two states have one name")
        stores = {i: known[f"{i}.{TOKEN}"].dims if f"{i}.{TOKEN}" in known else () for i in self.budgets}
        require(all(stores[i] == ("B", sum(budget)) for i, budget in self.budgets.items()), "budgets of other states")
        for name, (dtype, dims) in CLOCKS.items():
            require(name in known and (known[name].dtype, known[name].dims) == (dtype, dims), f"no clock {name}")
        sizes = [prod(d for d in s.dims if isinstance(d, int)) for s in states]
        require(max(sizes, default=0) < NUMBERS, "a state that no machine has room for")
        require(all(s.dims[:1] == ("B",) and all(isinstance(d, int) for d in s.dims[1:]) for s in states), "dims")


def require(holds: bool, text: str) -> None:
    """ValueError with this text if it does not hold."""
    if not holds:
        raise ValueError(text)


@dataclass(frozen=True)
class ExportForm:
    """How a target's exports lie in a folder: its `name`, which is that of the folder in an artifact; what people call
    an export (`said`: "ONNX"); the file that marks it, and the newest format of that.
    """

    name: str
    said: str
    mark: str
    newest: int = 1

    @property
    def again(self) -> str:
        """What to do about a damaged one."""
        command = f"`sleepc export ARTIFACT --to {self.name} --force`"
        return f"The export is damaged or was edited: make it again with {command}."

    @property
    def backend(self) -> str:
        """The option that runs it, for people."""
        return f"--backend {self.name}"


@dataclass
class FilesExport(Export):
    """An export whose files are held open: another one in the place of a file is a SleepcError."""

    folder: Path
    manifest: FilesManifest
    files: list[HeldFile]
    form: ExportForm
    checked: bool = False

    def check_bytes(self) -> None:
        """Once: are the files' bytes those that were exported? Raises SleepcError if they are not."""
        if self.checked:
            return
        if not self.manifest.hashes:
            text = f"{self.folder} was exported before files had hashes: what was changed since cannot be told"
            warnings.warn(text, SleepcWarning, stacklevel=3)
        else:
            with ThreadPoolExecutor(2) as pool:
                found = list(pool.map(HeldFile.sha256, self.files))
            for file, sha256 in zip(self.files, found, strict=True):
                if sha256 != self.manifest.hashes[file.path.name]:
                    what = f"{file.path.name} was changed after the export"
                    raise SleepcError(what, where=str(file.path), fix=self.form.again)
        self.checked = True

    def nbytes(self) -> int:
        """See `Export.nbytes`: of what runs."""
        return sum(file.size for file in self.files)

    def require_in_place(self) -> None:
        """What opens files by their paths finds those that were checked, or SleepcError."""
        for file in self.files:
            file.require_in_place()


Found = TypeVar("Found", bound=FilesExport)
Data = TypeVar("Data", bound=FilesManifest)


def load_export(path: str | Path, form: ExportForm, model: type[Data], make: type[Found]) -> Found:
    """An artifact with an export in the folder of its target, or the export's own folder.

    Raises UsageError if there is none, if it is newer than this sleepc, or of another state of the artifact that it
    lies in; SleepcError if it is damaged.
    """
    given = Path(path)
    folder = given / form.name if not (given / form.mark).is_file() else given
    if not (folder / form.mark).is_file():
        raise _none(given, form)

    def read(at: Path) -> Found:
        manifest = _read(at / form.mark, form, model)
        refuse_links_out(at, "export", form.again)
        files = [_held(at, name, form) for name in manifest.files]
        size = next(file.size for file in files if file.path.name == manifest.weights)
        if size != manifest.weights_size:
            what = f"{manifest.weights} has {size} bytes instead of {manifest.weights_size}"
            raise SleepcError(what, where=str(at), fix=form.again)
        check_still_of(at, form.name, manifest.identity)
        return make(at, manifest, files, form)

    return load_whole(folder, read)


def _held(folder: Path, name: str, form: ExportForm) -> HeldFile:
    if not (folder / name).is_file():
        raise SleepcError(f"{name} is missing", where=str(folder), fix=form.again)
    if not is_inside(folder, folder / name):
        raise SleepcError(f"{name} leads out of the export", where=str(folder), fix=form.again)
    return HeldFile(folder / name)


def _none(given: Path, form: ExportForm) -> UsageError:
    if (given / ARTIFACT).is_file():
        fix = f"`sleepc export {given} --to {form.name}` makes one."
        return UsageError(f"{given} has no {form.said} export", where=form.backend, fix=fix)
    return UsageError(
        f"{given} is neither an artifact with an {form.said} export nor an export: it has no {form.mark}",
        where=form.backend,
        fix=f"`sleepc export ARTIFACT --to {form.name}` makes one.",
    )


def _read(path: Path, form: ExportForm, model: type[Data]) -> Data:
    """The manifest, checked."""
    manifest, found = read_sealed(path, FileKind("export", form.newest, MOST, "export again", form.again), model)
    if manifest.hashes and found != manifest.sha256:
        raise SleepcError(f"{path.name} was changed after it was written", where=str(path), fix=form.again)
    return manifest
