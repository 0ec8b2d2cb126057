"""Parameters that no graph reads are not parameters of the program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sleepc.ir.program import ProgramGraphs
from sleepc.passes.base import Effect, Pass
from sleepc.passes.facts import BLOCKS, Fact


@dataclass(frozen=True)
class DropUnusedParams(Pass):
    """Forget what went with masks, counted positions and operations that did nothing."""

    name: ClassVar[str] = "drop-unused-params"
    effect: ClassVar[Effect] = "EXACT"
    requires: ClassVar[tuple[Fact, ...]] = (BLOCKS,)

    def run(self, program: ProgramGraphs) -> int:
        """The number of parameters forgotten."""
        used = {key for block in program.layout for key in block.params.values()}
        for graph in (program.embed, program.head):
            used |= {*graph.ports("param"), *graph.ports("const")}
        before = len(program.params)
        program.params = {key: value for key, value in program.params.items() if key in used}
        return before - len(program.params)
