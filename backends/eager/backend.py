"""The eager backend: nothing to install, nothing to lower."""

from __future__ import annotations

import torch

from sleepc.backends.eager.steps import EagerSteps
from sleepc.errors import UsageError
from sleepc.ir.parameters import materialise
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.adapt.retype import Retype
from sleepc.passes.base import Stage
from sleepc.passes.runner import run_stages

name = "eager"


def missing() -> str | None:
    """Why the backend cannot run here; None, since PyTorch is always there."""
    return None


def about() -> str:
    """What it runs on."""
    return f"PyTorch {torch.__version__}"


def load(
    program: ProgramGraphs, *, device: str = "cpu", dtype: torch.dtype | None = None, train: bool = False
) -> EagerSteps:
    """Steps of a program at level STEP. Parameters stay mapped where neither device nor dtype asks for a copy.

    Raises UsageError where the device is not there.
    """
    check_device(device)
    if dtype is not None and dtype != program.dtype:
        program = run_stages(program, (Stage("retype", "STEP", (Retype(dtype),)),))
    return EagerSteps(program, materialise(program, device), device=device, train=train)


def check_device(device: str) -> None:
    """Raises UsageError for what names no device, and for one that is not here."""
    kind, colon, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (colon and not (number.isascii() and number.isdigit())):
        raise UsageError(f"there is no device {device!r}", where="--device", fix="One of: cpu, cuda, cuda:1 and so on.")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError("there is no CUDA device here", where=f"--device {device}", fix="Use --device cpu.")
    there = torch.cuda.device_count() if kind == "cuda" else 1
    if int(number or 0) >= there:
        last = f"the last one is {kind}:{there - 1}"
        raise UsageError(f"there is no device {device}: {last}", where="--device", fix=f"Use --device {kind}.")
