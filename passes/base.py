"""What a pass is: a frozen dataclass with a name, what it needs, what it may change, and run(program) -> rewrites."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from sleepc.ir.levels import Level
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.facts import Fact

# What a pass does to the logits of a row's first window, before any sleep. EXACT: they stay as they are, to the bit.
# ROUNDING: up to rounding. APPROXIMATE: the same, but beyond the window, or with trained parameters, it is another
# function. REPLACES: another function from the first token on.
Effect = Literal["EXACT", "ROUNDING", "APPROXIMATE", "REPLACES"]


@dataclass(frozen=True)
class Pass:
    """A rewrite of a program. Options are fields, so str(pass) is its specification.

    `requires` is checked before it runs; `effect` is checked whenever the runner is given tokens to try programs on.
    """

    name: ClassVar[str]
    effect: ClassVar[Effect]
    requires: ClassVar[tuple[Fact, ...]] = ()

    def run(self, program: ProgramGraphs) -> int:
        """Rewrite `program` in place and return the number of rewrites; 0 if and only if nothing changed."""
        raise NotImplementedError


@dataclass(frozen=True)
class Stage:
    """Passes and the level that the program has reached after them."""

    name: str
    level: Level
    passes: tuple[Pass, ...]
