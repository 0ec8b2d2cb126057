"""A program as files that other runtimes run: options, place and text; the backend writes and checks them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sleepc.errors import UsageError
from sleepc.hf.tokenizer import copy_tokenizer
from sleepc.ir.program import ProgramGraphs
from sleepc.progress import Progress
from sleepc.whole_folder import check_free, written_beside

TARGETS = ("onnx",)
ENOUGH = 64  # tokens of a text, which is read again and again where it is too short


class Program(Protocol):
    """What is exported (sleepc.api.Program is one)."""

    graphs: ProgramGraphs
    path: Path | None
    identity: str

    def some_tokens(self, text: str | None, tokens: Sequence[int] | None = None) -> list[int]:
        """Tokens to read, see api.Program."""

    def check_bytes(self) -> None:
        """Raises SleepcError if tensors have changed since the conversion."""

    def folder(self) -> Path | None:
        """Where the tokenizer's files are."""


@dataclass(frozen=True)
class Exported:
    """Where the files are, what was checked (see backends.onnx.check.report), and how long it took."""

    path: Path
    report: dict[str, Any]
    seconds: float


def export_program(
    program: Program,
    path: str | Path | None,
    *,
    to: str,
    precision: str,
    ops: str,
    ep: str,
    text: str | None,
    tokens: Sequence[int] | None,
    force: bool,
    progress: Progress,
) -> Exported:
    """See `Program.export`."""
    from sleepc.backends.onnx import backend
    from sleepc.backends.onnx.manifest import MANIFEST

    if to not in TARGETS:
        raise UsageError(f"unknown export target {to!r}", where="--to", fix=f"Targets: {', '.join(TARGETS)}.")
    started = time.perf_counter()
    options = {"precision": precision, "ops": ops, "ep": ep}
    backend.style_of(**options)  # before any work
    target = _target(program, path, to)
    check_free(target, force=force, mark=MANIFEST)
    read = program.some_tokens(text, tokens)
    if len(read) < ENOUGH:
        where = "--text" if tokens is None else "--tokens"
        raise UsageError(f"the text has {len(read)} tokens", where=where, fix=f"Give {ENOUGH} tokens at least.")
    program.check_bytes()
    with written_beside(target, force=force, mark=MANIFEST) as draft:
        manifest = backend.export(
            program.graphs, draft, tokens=read, identity=program.identity, progress=progress, **options
        )
        folder = program.folder()
        if folder is not None:
            copy_tokenizer(folder, draft)
    return Exported(target, manifest.report, time.perf_counter() - started)


def _target(program: Program, path: str | Path | None, to: str) -> Path:
    if path is not None:
        return Path(path)
    if program.path is None:
        raise UsageError("the program is in no artifact, so its export has no place", fix="Give a path.")
    return program.path / to
