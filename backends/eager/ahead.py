"""A token's step as code that is made ahead of time: a package of PyTorch's inductor (AOTInductor) for the embedding,
each class of blocks and the head, without weights, which are its arguments. It lies in the artifact, and is loaded only
if a person says so.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from sleepc.backends.check.compare import compare
from sleepc.backends.check.reading import FEW, Found
from sleepc.backends.contract import Draft
from sleepc.backends.eager.code_files import MANIFEST, NAME, CodeManifest, read_code
from sleepc.backends.eager.compiled import Code, CompiledSteps
from sleepc.backends.eager.kernels import IN_PLACE
from sleepc.backends.eager.native import SETTINGS, Function, Native, compiled, opened, traced_as
from sleepc.backends.eager.steps import EagerSteps
from sleepc.backends.listed_files import facts_of
from sleepc.backends.processor import architecture, processor_features, unfit
from sleepc.backends.report import Report
from sleepc.errors import SleepcError
from sleepc.held_file import HeldFile
from sleepc.ir.parameters import materialise
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.text import print_graph
from sleepc.progress import Progress, silent
from sleepc.runtime.session import Session
from sleepc.runtime.steps import Steps
from sleepc.version import __version__

AHEAD = {**SETTINGS, "cpp.dynamic_threads": True}  # as many as there are where it runs
FIX = f"`sleepc export ARTIFACT --to {NAME} --force` makes it again, on a machine with a C++ compiler."
ROWS = (1, 3)  # that are read in the check, by both forms of the code


def write_step(program: ProgramGraphs, folder: Path, progress: Progress = silent) -> CodeManifest:
    """Compile a token's step for one row and for many. Raises UsageError if there is no C++ compiler, SleepcError for
    what cannot be compiled.
    """
    functions: dict[str, str] = {}

    def load(function: Function, name: str) -> Native:
        progress(f"compiling {name} ({len(functions) + 1})", None)
        code = compiled(traced_as(name, function), name, AHEAD)
        file = f"{sha256(code).hexdigest()[:32]}.pt2"
        (folder / file).write_bytes(code)
        functions[key_of(function, name)] = file
        return opened(folder / file, function, new=True)

    _steps(program, Code(load)).prepare(many=True)
    return CodeManifest(
        sleepc=__version__,
        torch=torch.__version__,
        machine=architecture(),
        features=sorted(processor_features()),
        functions=functions,
        files={name: facts_of(folder / name) for name in sorted(functions.values())},
    )


def key_of(function: Function, name: str) -> str:
    """What the code of a function depends on besides PyTorch and the processor."""
    text = print_graph(function.executor.graph)
    return f"{name} {sha256(text.encode()).hexdigest()[:16]} {function.shapes()}"


def code_in(artifact: Path) -> Code | None:
    """The code that lies in an artifact; None if there is none. Raises SleepcError if it is not what was written."""
    folder = artifact / NAME
    return code_of(*read_code(folder)) if (folder / MANIFEST).is_file() else None


def code_of(manifest: CodeManifest, held: Mapping[str, HeldFile]) -> Code:
    """The code of a folder that was checked; it compiles nothing."""
    reason = _unfit(manifest)

    def load(function: Function, name: str) -> Native:
        key = key_of(function, name)
        if reason is not None or key not in manifest.functions:
            raise SleepcError(reason or f"the artifact's code was made for another {name}", fix=FIX)
        file = held[manifest.functions[key]]
        file.require_in_place()
        native = opened(file.path, function, new=False)
        file.require_in_place()
        return native

    return Code(load, "the artifact", needed=False)


def _unfit(manifest: CodeManifest) -> str | None:
    """Why the code cannot run here."""
    if manifest.torch != torch.__version__:
        return f"the code is for PyTorch {manifest.torch}, and this is {torch.__version__}"
    if manifest.features and not processor_features():
        return "this system does not say what its processor has"
    return unfit(manifest.machine, manifest.features)


def check_step(draft: Draft, manifest: CodeManifest) -> Report:
    """What the files compute, against the step operator by operator: rows that sleep on their own clocks."""
    started, report = time.perf_counter(), Report()
    held = {name: HeldFile(draft.folder / name) for name in manifest.files}
    by_code = _steps(draft.step, replace(code_of(manifest, held), needed=True))
    plain = EagerSteps(draft.step, materialise(draft.step, "cpu"), IN_PLACE)
    precision = "fp32" if draft.step.dtype in (torch.float32, torch.float64) else "fp16"
    for rows in ROWS:
        name = f"token by token, rows: {rows}"
        draft.progress(name, None)
        found, expected = _read(by_code, rows), _read(plain, rows)
        report.rows += compare(name, found, expected, precision, draft.step.all_states())
    report.seconds = time.perf_counter() - started
    return report


def _steps(program: ProgramGraphs, code: Code) -> CompiledSteps:
    return CompiledSteps(program, materialise(program, "cpu"), IN_PLACE, silent, code=code)


def _read(steps: Steps, rows: int) -> Found:
    """Tokens one by one across sleeps, which are forced if the window is long; a row now and then reads nothing."""
    session, logits = Session(steps, rows), []
    session.feed([[at % steps.vocab for at in range(1, 12 + 5 * row)] for row in range(rows)], logits="none")
    for at in range(2 * FEW):
        tokens = [[(7 * at + row) % steps.vocab] if rows == 1 or (at + row) % 3 else [] for row in range(rows)]
        logits.append(session.feed(tokens))
        if at == FEW and steps.window > FEW:
            session.sleep()
    return Found(np.concatenate(logits), steps.to_named_arrays(session.snapshot().state))
