"""The table of backends that the suite runs against."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from sleepc.backends.eager import backend as eager
from sleepc.backends.onnx.call import Style
from sleepc.backends.onnx.installed import missing_exporter
from sleepc.backends.onnx.lower import lower
from sleepc.backends.onnx.steps import OnnxSteps
from sleepc.ir.program import ProgramGraphs
from sleepc.runtime.steps import Steps


@dataclass(frozen=True)
class Subject:
    """A backend: why it cannot run here (None: it can), and steps of a program on it; the dtype of the programs, and
    how far results may be apart, as a share of their scale.
    """

    missing: Callable[[], str | None]
    load: Callable[[ProgramGraphs], Steps]
    dtype: torch.dtype = torch.float64
    tolerance: float = 1e-9


FOLDERS = ExitStack()
atexit.register(FOLDERS.close)


def exported(style: Style, program: ProgramGraphs) -> Steps:
    """A program as ONNX files, which live as long as this process, in ONNX Runtime."""
    folder = Path(FOLDERS.enter_context(TemporaryDirectory()))
    return OnnxSteps(folder, lower(program, folder, style), threads=1)


def _onnx(style: Style) -> Subject:
    # float32 is what the backend has; semantics.md allows 1e-4 there
    return Subject(missing_exporter, partial(exported, style), torch.float32, 1e-4)


def _no_gpu() -> str | None:
    return None if torch.cuda.is_available() else "there is no CUDA device here"


BACKENDS = {
    "eager": Subject(eager.missing, eager.load),
    # Rotations are computed in float32, also in a float64 model, and a GPU's sines are others.
    "cuda": Subject(_no_gpu, partial(eager.load, device="cuda"), tolerance=1e-5),
}
ONNX = {
    "ort": _onnx(Style(columns=True)),
    "whole": _onnx(Style(columns=False)),
    "portable": _onnx(Style(ops="portable", columns=False)),
    "portable-columns": _onnx(Style(ops="portable", columns=True)),
}
SUBJECTS = {**BACKENDS, **ONNX}
RUNNABLE = ["eager", pytest.param("cuda", marks=pytest.mark.gpu)]
"""The names of BACKENDS, for parametrisation."""
