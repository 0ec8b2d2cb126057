"""The check of an export: its files, then what ONNX Runtime computes with them, against the eager backend."""

from __future__ import annotations

import copy
import gc
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sleepc.backends.eager.backend import materialise
from sleepc.backends.eager.steps import EagerSteps
from sleepc.backends.onnx.check.compare import compare
from sleepc.backends.onnx.check.files import check_files
from sleepc.backends.onnx.check.reading import Kept, Other, Reading, tokens_needed
from sleepc.backends.onnx.check.report import Report
from sleepc.backends.onnx.installed import about
from sleepc.backends.onnx.lower import passes_of
from sleepc.backends.onnx.manifest import Manifest
from sleepc.backends.onnx.steps import OnnxSteps
from sleepc.ir.program import ProgramGraphs

Progress = Callable[[str, float | None], None]


def check(
    program: ProgramGraphs, folder: Path, manifest: Manifest, tokens: Sequence[int], progress: Progress
) -> Report:
    """Check the files in `folder` against the float32 program that they were made from, reading `tokens`.

    Raises SleepcError where a file is not what was asked for; what they compute is in the report.
    """
    started = time.perf_counter()
    report = Report()
    progress("checking the files", None)
    files = [part.file for part in (manifest.wake, manifest.sleep_replay, manifest.sleep_recurrent) if part]
    report.facts |= {"runtime": about(), **check_files(program, folder, files)}
    ids = np.resize(np.array(tokens, np.int64), tokens_needed(program.window))
    with tempfile.TemporaryDirectory(prefix=".check-", dir=folder) as shelf:
        expected = Shelf(Path(shelf))
        _read_eager(program, ids, expected, progress)
        gc.collect()  # the parameters are free before ONNX Runtime has its own
        _read_onnx(program, folder, manifest, ids, expected, report, progress)
    report.seconds = time.perf_counter() - started
    return report


@dataclass(frozen=True)
class Shelf:
    """Keeps what was read on disk: with a large vocabulary it would take as much memory as the model."""

    folder: Path

    def put(self, name: str, kept: Kept) -> None:
        """Keep it."""
        arrays = {f"state.{key}": value for key, value in kept.state.items()}
        np.savez(self._file(name), logits=kept.logits, **arrays)  # type: ignore[arg-type]

    def take(self, name: str) -> Kept:
        """What was put, once."""
        with np.load(self._file(name)) as file:
            arrays = {key: file[key] for key in file.files}
        self._file(name).unlink()
        logits = arrays.pop("logits")
        return Kept(logits, {key.removeprefix("state."): value for key, value in arrays.items()})

    def _file(self, name: str) -> Path:
        return self.folder / f"{name.replace(' ', '-')}.npz"


def _read_eager(program: ProgramGraphs, tokens: Any, shelf: Shelf, progress: Progress) -> None:
    parameters = materialise(program, "cpu")
    others: list[Other] = [(name, EagerSteps(p, parameters)) for name, p, _ in sleeps_of(program)]
    reading = Reading(EagerSteps(program, parameters), tokens, shelf.put)
    reading.read_all(others, lambda share: progress("reading with PyTorch", share))


def _read_onnx(
    program: ProgramGraphs,
    folder: Path,
    manifest: Manifest,
    tokens: Any,
    expected: Shelf,
    report: Report,
    progress: Progress,
) -> None:
    steps = OnnxSteps(folder, manifest)
    others: list[Other] = [(name, _sleeping(steps, changes)) for name, _, changes in sleeps_of(program)]

    def compared(name: str, kept: Kept) -> None:
        report.rows += compare(name, kept, expected.take(name), manifest.precision)

    Reading(steps, tokens, compared).read_all(others, lambda share: progress("reading with ONNX Runtime", share))


Changes = dict[str, Any]


def sleeps_of(program: ProgramGraphs) -> list[tuple[str, ProgramGraphs, Changes]]:
    """Sleeps to compare: what each is called, the program that makes it, and what it changes in the manifest.

    N passes and N + 1, and for a program that runs blocks again also the sleep without that.
    """
    passes = passes_of(program)
    found: list[tuple[str, ProgramGraphs, Changes]] = []
    if program.loop is not None:
        plain = replace(program.clone(), loop=None)
        found.append(("a sleep by sleep_replay.onnx", plain, {"sleep_recurrent": None, "passes": 1}))
    for n in (passes, passes + 1):
        found.append((f"a sleep of {n} pass{'es' if n > 1 else ''}", with_passes(program, n), {"passes": n}))
    return found


def with_passes(program: ProgramGraphs, passes: int) -> ProgramGraphs:
    """The program with another number of passes of its sleeps; itself where they make none."""
    program = program.clone()
    if program.loop is not None:
        program.loop = replace(program.loop, passes=passes)
        return program
    for cls in program.classes.values():
        for node in cls.sleep.calls() if cls.sleep else []:
            if node.target is torch.ops.sleepc.replay.default:
                node.kwargs = {**node.kwargs, "passes": passes}
    return program


def _sleeping(steps: OnnxSteps, changes: Changes) -> OnnxSteps:
    """The same steps, with the same sessions, by a manifest with other sleeps."""
    other = copy.copy(steps)
    other.manifest = steps.manifest.model_copy(update=changes)
    return other
