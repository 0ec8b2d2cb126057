"""gguf-export.json: what a GGUF file of ours is of, and the folder's files by size and hash. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from sleepc.backends.listed_files import FileFacts, ListedFiles
from sleepc.sealed_json import FileName, Strict

MANIFEST, NAME, FORMAT = "gguf-export.json", "gguf", 1
FILES = ListedFiles(NAME, FORMAT)


class GgufManifest(Strict):
    """See docs/native.md."""

    format: Annotated[int, Field(ge=1, le=FORMAT)] = FORMAT
    sleepc: str
    identity: str
    dtype: str
    files: dict[FileName, FileFacts]
    report: dict[str, Any]
    sha256: str = ""  # of everything else in the file
