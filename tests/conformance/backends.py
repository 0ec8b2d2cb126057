"""The table of backends that the suite runs against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sleepc.backends.eager import backend as eager
from sleepc.ir.program import ProgramGraphs
from sleepc.runtime.steps import Steps


@dataclass(frozen=True)
class Subject:
    """A backend: why it cannot run here (None: it can), and steps of a program on it."""

    missing: Callable[[], str | None]
    load: Callable[[ProgramGraphs], Steps]


BACKENDS = {"eager": Subject(eager.missing, eager.load)}
