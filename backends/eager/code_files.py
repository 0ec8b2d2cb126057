"""The folder of a step's code: its manifest, and the files that it lists. Imports no torch, and loads no code."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from sleepc.backends.listed_files import FileFacts, ListedFiles
from sleepc.held_file import HeldFile, load_whole, refuse_links_out
from sleepc.sealed_json import FileName, Strict

NAME, MANIFEST = "inductor", "inductor.json"
FILES = ListedFiles(NAME, 1)


class CodeManifest(Strict):
    """The file of every function, by its name, its graph and the sizes that it is for; and what the code needs: a
    `machine` (x86_64 …) whose processor has all `features`, and this PyTorch.
    """

    format: Literal[1] = 1
    sleepc: str
    torch: str
    machine: str
    features: list[str]
    functions: dict[str, FileName]
    files: dict[FileName, FileFacts]
    report: dict[str, Any] = Field(default_factory=dict)
    sha256: str = ""  # of everything else in the file

    @model_validator(mode="after")
    def _fits(self) -> CodeManifest:
        if set(self.functions.values()) != set(self.files):
            raise ValueError("other files than those of its functions")
        return self


def read_code(folder: Path) -> tuple[CodeManifest, dict[str, HeldFile]]:
    """What is in the folder, held open. Raises SleepcError if that is not what was written."""

    def read(at: Path) -> tuple[CodeManifest, dict[str, HeldFile]]:
        refuse_links_out(at, "export", FILES.again)
        manifest = FILES.read(at / MANIFEST, CodeManifest)
        return manifest, FILES.check(at, manifest.files)

    return load_whole(folder, read)
