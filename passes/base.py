"""What a pass is: a frozen dataclass with a name, a declared effect, and run(program) -> number of rewrites."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from sleepc.ir.program import Level, ProgramGraphs

# EXACT: bitwise the same results. ROUNDING: the same up to rounding. APPROXIMATE: another function, to be evaluated.
Effect = Literal["EXACT", "ROUNDING", "APPROXIMATE"]


@dataclass(frozen=True)
class Pass:
    """A rewrite of a program. Options are fields, so str(pass) is its specification."""

    name: ClassVar[str]
    effect: ClassVar[Effect]

    def run(self, program: ProgramGraphs) -> int:
        """Rewrite `program` in place and return the number of rewrites; 0 if and only if nothing changed."""
        raise NotImplementedError


@dataclass(frozen=True)
class Stage:
    """Passes and the level that the program has reached after them."""

    name: str
    level: Level
    passes: tuple[Pass, ...]
