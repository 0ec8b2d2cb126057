"""native.json: what a checkpoint of ours is of, and its files by size and hash. Imports no torch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from sleepc.backends.listed_files import FileFacts, ListedFiles
from sleepc.backends.report import Figure, Report
from sleepc.errors import UsageError
from sleepc.held_file import load_whole, refuse_links_out
from sleepc.sealed_json import FileName, Strict

MANIFEST, NAME, FORMAT = "native.json", "hf", 1
FILES = ListedFiles(NAME, FORMAT)


class NativeManifest(Strict):
    """See docs/native.md."""

    format: Annotated[int, Field(ge=1, le=FORMAT)] = FORMAT
    sleepc: str
    identity: str
    cls: str
    runtime: str
    files: dict[FileName, FileFacts]
    report: dict[str, Any]
    sha256: str = ""  # of everything else in the file


def verified(folder: Path) -> Report:
    """The files by size and hash. Raises UsageError if there is no manifest, SleepcError for one that was changed."""
    started = time.perf_counter()
    if not (folder / MANIFEST).is_file():
        raise UsageError(f"{folder} has no {MANIFEST}", fix=f"`sleepc export ARTIFACT --to {NAME}` makes one.")
    count = load_whole(folder, _checked)
    rows = [Figure("files", "changed", 0, 0, f"{count} by size and sha256")]
    return Report(rows, seconds=time.perf_counter() - started)


def _checked(folder: Path) -> int:
    refuse_links_out(folder, "export", FILES.again)
    return len(FILES.check(folder, FILES.read(folder / MANIFEST, NativeManifest).files))
