"""Files of an export that its manifest lists by size and hash. Imports no torch."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from sleepc.backends.report import Figure, Report
from sleepc.errors import SleepcError, UsageError
from sleepc.held_file import HeldFile, is_inside, load_whole, refuse_links_out
from sleepc.sealed_json import Data, FileKind, Strict, digest, read_sealed

MOST = 16 << 20  # bytes of a manifest
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class FileFacts(Strict):
    """A file of the folder."""

    size: Annotated[int, Field(ge=0, lt=1 << 40)]
    sha256: Hash


def facts_of(path: Path) -> FileFacts:
    """The size and hash of a file."""
    file = HeldFile(path)
    return FileFacts(size=file.size, sha256=file.sha256())


def facts_in(folder: Path) -> dict[str, FileFacts]:
    """Those of every file of a folder, in the order of their names."""
    return {path.name: facts_of(path) for path in sorted(folder.iterdir()) if path.is_file()}


def sealed(manifest: Any) -> Any:
    """The same with its own hash."""
    return manifest.model_copy(update={"sha256": digest(json.loads(manifest.model_dump_json()))})


@dataclass(frozen=True)
class ListedFiles:
    """How exports of a target are read: its name, and the newest format of its manifests."""

    target: str
    newest: int

    @property
    def again(self) -> str:
        """What to do about a damaged one."""
        command = f"`sleepc export ARTIFACT --to {self.target} --force`"
        return f"The folder is damaged or was edited: make it again with {command}."

    def read(self, path: Path, model: type[Data]) -> Data:
        """A manifest. Raises UsageError if it is newer than this sleepc, SleepcError if it is damaged."""
        made, found = read_sealed(path, FileKind("export", self.newest, MOST, "export again", self.again), model)
        if found != getattr(made, "sha256", ""):
            raise SleepcError(f"{path.name} was changed after it was written", where=str(path), fix=self.again)
        return made

    def check(self, folder: Path, files: Mapping[str, FileFacts]) -> dict[str, HeldFile]:
        """The files, held open. Raises SleepcError for one that is not what was written."""
        held = {}
        for name, facts in files.items():
            path = folder / name
            if not path.is_file():
                raise SleepcError(f"{name} is missing", where=str(folder), fix=self.again)
            if not is_inside(folder, path):
                raise SleepcError(f"{name} leads out of the export", where=str(folder), fix=self.again)
            file = HeldFile(path)
            if file.size != facts.size:
                what = f"{name} has {file.size} bytes instead of {facts.size}"
                raise SleepcError(what, where=str(path), fix=self.again)
            if file.sha256() != facts.sha256:
                raise SleepcError(f"{name} was changed after the export", where=str(path), fix=self.again)
            held[name] = file
        return held


def verified(folder: Path, mark: str, form: ListedFiles, model: type[Data]) -> Report:
    """The files by size and hash, whose manifest is `mark`. Raises UsageError if there is none, SleepcError for a file
    that was changed.
    """
    started = time.perf_counter()
    if not (folder / mark).is_file():
        raise UsageError(f"{folder} has no {mark}", fix=f"`sleepc export ARTIFACT --to {form.target}` makes one.")

    def checked(at: Path) -> int:
        refuse_links_out(at, "export", form.again)
        manifest: Any = form.read(at / mark, model)
        return len(form.check(at, manifest.files))

    count = load_whole(folder, checked)
    rows = [Figure("files", "changed", 0, 0, f"{count} by size and sha256")]
    return Report(rows, seconds=time.perf_counter() - started)
