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

from sleepc.backends import table
from sleepc.backends.contract import Backend
from sleepc.backends.onnx.call import Style
from sleepc.backends.onnx.installed import missing_exporter
from sleepc.backends.onnx.lower import lower
from sleepc.backends.onnx.steps import OnnxSteps
from sleepc.errors import UsageError
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


def subject_of(backend: Backend, device: str) -> Subject:
    """A backend on one of its devices."""

    def missing() -> str | None:
        reason = backend.missing()
        if reason is None:
            try:
                backend.check_device(device)
            except UsageError as error:
                return str(error)
        return reason

    dtype = getattr(torch, backend.dtype)
    return Subject(missing, partial(backend.steps, device=device), dtype, backend.devices[device])


def name_of(backend: str, device: str) -> str:
    """What the suite calls a backend on a device."""
    return backend if device == "cpu" else f"{backend}-{device}"


ON = [(name, device) for name in table.BACKENDS for device in table.find_backend(name).devices]
BACKENDS = {name_of(*each): subject_of(table.find_backend(each[0]), each[1]) for each in ON}
ONNX = {
    "ort": _onnx(Style(columns=True)),
    "whole": _onnx(Style(columns=False)),
    "portable": _onnx(Style(ops="portable", columns=False)),
    "portable-columns": _onnx(Style(ops="portable", columns=True)),
}
SUBJECTS = {**BACKENDS, **ONNX}
RUNNABLE = [pytest.param(name_of(*on), marks=[] if on[1] == "cpu" else pytest.mark.gpu) for on in ON]
"""The names of BACKENDS, for parametrisation."""
