"""native.json: what a checkpoint of ours is of, and its files by size and hash. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from sleepc.backends.listed_files import FileFacts, ListedFiles
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
