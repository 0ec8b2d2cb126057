"""A model that looks positions up in a table has as many as the table has rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sleepc.ir.program import ProgramGraphs
from sleepc.passes.analysis.dependence import learned_positions
from sleepc.passes.base import Effect, Pass
from sleepc.passes.facts import FLAT, FUNCTIONAL, Fact


@dataclass(frozen=True)
class LimitPositions(Pass):
    """`max_positions` is no more than the rows of the smallest table that is indexed by positions."""

    name: ClassVar[str] = "limit-positions"
    effect: ClassVar[Effect] = "EXACT"
    requires: ClassVar[tuple[Fact, ...]] = (FLAT, FUNCTIONAL)

    def run(self, program: ProgramGraphs) -> int:
        """1 if the model had no limit, or a larger one."""
        limit, before = learned_positions(program.embed), program.max_positions
        if limit is None or (before is not None and before <= limit):
            return 0
        program.max_positions = limit
        return 1
