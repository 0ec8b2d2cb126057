"""Exports of small families for tests: written once, into folders that live as long as the process."""

from __future__ import annotations

import atexit
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from sleepc.backends.onnx.call import Style
from sleepc.backends.onnx.lower import write_files
from sleepc.backends.onnx.manifest import ExportManifest
from sleepc.backends.onnx.target import TARGET, options_of
from sleepc.backends.onnx.weights import Weights
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.runner import run_stages
from sleepc.verify.memory_values import shaken
from tests.conformance.cases import RECIPES
from tests.families import WINDOW, family

FOLDERS = ExitStack()
atexit.register(FOLDERS.close)


def new_folder() -> Path:
    """An empty folder, removed when the process ends."""
    return Path(FOLDERS.enter_context(TemporaryDirectory()))


def lower(program: ProgramGraphs, folder: Path, style: Style, **more: Any) -> ExportManifest:
    """A program at level STEP as files of a style, unchecked."""
    return lower_weights(program, folder, style, **more)[0]


def lower_weights(program: ProgramGraphs, folder: Path, style: Style, **more: Any) -> tuple[ExportManifest, Weights]:
    """The same, and what each weight of the file is."""
    lowered = run_stages(program, TARGET.lowering(program, options_of(style)))
    weights = Weights.of(lowered, folder, style.precision)
    return write_files(lowered, folder, style, weights=weights, **more), weights


@cache
def exported(name: str, recipe: str, ops: str = "ort", window: int = WINDOW) -> tuple[Path, ExportManifest]:
    """The files of a family by a recipe of the conformance suite, memories shaken."""
    step, _ = family(name, torch.float32).convert(**{"window": window, **RECIPES[recipe]})
    folder = new_folder()
    return folder, lower(shaken(step), folder, Style(ops=ops, columns=ops == "ort"))  # type: ignore[arg-type]
