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
from sleepc.backends.contract import Backend, Target
from sleepc.backends.training_steps import TrainingSteps
from sleepc.errors import UsageError
from sleepc.ir.parameters import materialise
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


def exported(load: Callable[[ProgramGraphs, Path], Steps], program: ProgramGraphs) -> Steps:
    """A program as files, which live as long as this process, in the target's runtime."""
    return load(program, Path(FOLDERS.enter_context(TemporaryDirectory())))


def forms_of(target: Target) -> dict[str, Subject]:
    """Every way in which a target writes files."""
    dtype = getattr(torch, target.dtype)
    return {
        name: Subject(target.missing, partial(exported, load), dtype, target.tolerance)
        for name, load in target.forms().items()
    }


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
FORMS = {target: forms_of(table.find_target(target)) for target in table.TARGETS}
EXPORTS = {name: each for forms in FORMS.values() for name, each in forms.items()}
WRITTEN = [
    pytest.param(name, marks=pytest.mark.slow if table.find_target(target).compiles else [])
    for target, forms in FORMS.items()
    for name in forms
]
"""The names of EXPORTS, for parametrisation."""
SUBJECTS = {**BACKENDS, **EXPORTS}
load, TRAINER = table.find_backend().steps, table.find_trainer()
"""The default backend: steps of a program; and what trains."""
RUNNABLE = [pytest.param(name_of(*on), marks=[] if on[1] == "cpu" else pytest.mark.gpu) for on in ON]
"""The names of BACKENDS, for parametrisation."""


def in_tensors(program: ProgramGraphs, *, train: bool = False) -> TrainingSteps:
    """Steps whose parts take and give tensors."""
    return TRAINER.steps_on(program, materialise(program, "cpu"), train=train)


def runs(name: str) -> Subject:
    """A subject by name; the test is skipped where it cannot run."""
    reason = SUBJECTS[name].missing()
    if reason:
        pytest.skip(reason)
    return SUBJECTS[name]
