"""A program as files that other runtimes run: options, place and text; the target writes and checks them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from sleepc.backends.contract import Draft, Exporter, HostTarget
from sleepc.backends.table import find_exporter
from sleepc.errors import UsageError
from sleepc.hf.papers import Card, copy_papers, write_card
from sleepc.hf.tokenizer import copy_tokenizer
from sleepc.ir.program import ProgramGraphs
from sleepc.manifest import Source
from sleepc.passes.base import Stage
from sleepc.passes.runner import run_stages
from sleepc.progress import Progress, silent
from sleepc.recipe import Recipe
from sleepc.runtime.arguments import typed
from sleepc.whole_folder import check_free, written_beside

ENOUGH = 64  # tokens of a text, which is read again and again if it is too short


class Exportable(Protocol):
    """What is exported (sleepc.api.Program is one)."""

    graphs: ProgramGraphs
    recipe: Recipe
    source: Source
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
    """Where the files are, the names of those that run, what was checked (see backends.report), how long it took."""

    path: Path
    files: Sequence[str]
    report: dict[str, Any]
    seconds: float


@dataclass(frozen=True)
class Request:
    """What `Program.export` is asked for, under its names."""

    path: str | Path | None
    to: str
    options: Mapping[str, Any]
    text: str | None
    tokens: Sequence[int] | None
    force: bool
    dump_graphs: Path | None = None


def export_program(program: Exportable, asked: Request, progress: Progress) -> Exported:
    """See `Program.export`."""
    started = time.perf_counter()
    target = find_exporter(asked.to)
    chosen = options_of(target, asked.options)
    target.check(chosen)  # before any work
    folder = _folder(program, asked.path, asked.to)
    check_free(folder, force=asked.force, mark=target.mark)
    read = _tokens(program, target, asked)
    program.check_bytes()
    step, lowered = lower(program.graphs, target.lowering(program.graphs, chosen), progress, asked.dump_graphs)
    with written_beside(folder, force=asked.force, mark=target.mark) as draft:
        files = program.folder()
        if files is not None and _has_text(target):
            copy_tokenizer(files, draft)
        if files is not None:
            copy_papers(files, draft)
        write_card(draft, Card(program.source.name, target.runtime, program.recipe.given(), target.library))
        source = Path(program.source.folder) if program.source.folder else None
        given = Draft(draft, step, read, program.identity, progress, program.recipe, files, source)
        written = target.write(lowered, chosen, given)
    return Exported(folder, written.files, written.report, time.perf_counter() - started)


def _has_text(target: Exporter) -> bool:
    """Is a text read when it writes, and by what it writes?"""
    return not isinstance(target, HostTarget) or target.reads


def _tokens(program: Exportable, target: Exporter, asked: Request) -> list[int]:
    """What is read in the checks; nothing for files that run nowhere here."""
    where = "--text" if asked.tokens is None else "--tokens"
    if not _has_text(target):
        if asked.text is not None or asked.tokens is not None:
            raise UsageError(f"--to {target.name} reads no tokens", where=where, fix="Leave it out.")
        return []
    read = program.some_tokens(asked.text, asked.tokens)
    if len(read) < ENOUGH:
        raise UsageError(f"the text has {len(read)} tokens", where=where, fix=f"Give at least {ENOUGH} tokens.")
    return read


def lower(
    program: ProgramGraphs, stages: Sequence[Stage], progress: Progress = silent, dump: Path | None = None
) -> tuple[ProgramGraphs, ProgramGraphs]:
    """What a target writes, before and after the stages that lead beyond level STEP."""
    same = [stage for stage in stages if stage.level == "STEP"]
    rest = [stage for stage in stages if stage.level != "STEP"]
    step = run_stages(program, same, progress=progress, dump=dump / "export" if dump else None)
    return step, run_stages(step, rest, progress=progress, dump=dump / "lower" if dump else None)


def options_of(target: Exporter, given: Mapping[str, Any]) -> Any:
    """What was given as the target's options. Raises UsageError for what is none of them, or of another type."""
    known = [each.name for each in fields(target.options)]
    for name in given:
        if name not in known:
            fix = f"It has {', '.join(known)}." if known else "It has none."
            raise UsageError(f"the target {target.name} has no option {name}", where=f"--to {target.name}", fix=fix)
    return typed(target.options)(**given)


def _folder(program: Exportable, path: str | Path | None, to: str) -> Path:
    if path is not None:
        return Path(path)
    if program.path is None:
        raise UsageError("the program is in no artifact, so its export has no place", fix="Give a path.")
    return program.path / to
