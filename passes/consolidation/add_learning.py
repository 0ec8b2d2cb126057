"""Consolidation `gradient`: what a sleep needs to take steps of gradient descent over the window that it ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from sleepc.errors import UsageError
from sleepc.ir.graph import Graph
from sleepc.ir.program import Learn, ProgramGraphs
from sleepc.ir.roles import DRAWN, SKIPPED
from sleepc.ir.states import StateSpec, with_role
from sleepc.passes.base import Effect, Pass
from sleepc.passes.consolidation.learning import Tail
from sleepc.passes.consolidation.window_again import record_hidden, record_tokens
from sleepc.passes.facts import AWAKE, BLOCKS, BOUNDED, CLOCKED, Fact


@dataclass(frozen=True)
class AddLearning(Pass):
    """The program learns by what learning.py says, in the blocks from `start` on; the block before them records the
    window's hidden states, embed its tokens, and steps that are left out are counted, and stretches that are drawn.

    Raises UsageError for a block from `start` on that carries a recurrence of its own: what it held when the window
    began is not known any more.
    """

    start: int
    steps: int
    lr: float
    clip: float
    window: int
    sinks: int
    loss: str = "next"
    span: int = 0
    name: ClassVar[str] = "add-learning"
    effect: ClassVar[Effect] = "APPROXIMATE"
    requires: ClassVar[tuple[Fact, ...]] = (BLOCKS, BOUNDED, CLOCKED, AWAKE)

    def run(self, program: ProgramGraphs) -> int:
        """1, for the graph of a step."""
        for i, block in enumerate(program.layout[self.start :], self.start):
            if with_role(program.classes[block.cls].states, "own"):
                raise UsageError(
                    "steps of gradient descent run blocks again from the window's start, and this one carries a "
                    "recurrence of its own, which is at the window's end",
                    where=f"block {i}",
                    fix="Name blocks behind the last of these with --mlps, or use --consolidation replay or in_place.",
                )
        if self.start:
            record_hidden(program, self.start - 1, self.window)
        tail = Tail(program, self.start, self.window, self.sinks)
        tail.given  # noqa: B018 (before tokens are recorded, of which it is made)
        record_tokens(program, self.window)
        counts = (SKIPPED, DRAWN) if self.loss == "span" else (SKIPPED,)
        added = (StateSpec("count", name, ("B",), torch.int64, "overwrite") for name in counts)
        program.states = (*program.states, *added)
        how = Learn(self.start, self.steps, self.lr, self.clip, Graph("learn"), self.loss, self.span)
        program.learn = tail.learn(how)
        return 1
