"""Recurrent consolidation: what a sleep needs to run blocks again over the window that it consolidates."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from sleepc.ir.graph import Graph
from sleepc.ir.infer import infer_types
from sleepc.ir.program import BlockClass, Loop, ProgramGraphs
from sleepc.ir.roles import TAKEN
from sleepc.ir.states import StateSpec, with_role
from sleepc.passes.base import Effect, Pass
from sleepc.passes.consolidation.window_again import (
    WindowStart,
    confine,
    drop_ports,
    record_hidden,
    replace_uses,
    without_new,
)
from sleepc.passes.facts import AWAKE, BLOCKS, BOUNDED, CLOCKED, Fact
from sleepc.passes.lib.classes import chosen_classes


@dataclass(frozen=True)
class AddLoop(Pass):
    """Consolidation `recurrent` over blocks [start, end), passes > 1 (semantics.md, section 4; arXiv 2605.26099,
    Algorithm 1); nothing if passes = 1.

    The last block of the loop records the window's hidden states. Every block from `start` on gets a graph `again`: its
    wake pass over the window, with attention confined to the window and the sinks from before it, the convolution's
    tail zero, and nothing returned but h and the memory. Blocks from `end` on run from the window's start: those that
    write online keep their memory of that moment. The window's token ids are recorded if blocks read what embed makes
    of them. With `settle` passes end early (see Loop), and the program counts them.
    """

    start: int
    end: int
    passes: int
    window: int
    sinks: int
    settle: float = 0.0
    name: ClassVar[str] = "add-loop"
    effect: ClassVar[Effect] = "APPROXIMATE"
    requires: ClassVar[tuple[Fact, ...]] = (BLOCKS, BOUNDED, CLOCKED, AWAKE)

    def run(self, program: ProgramGraphs) -> int:
        """The number of graphs added."""
        if self.passes == 1:
            return 0
        count = len(program.layout)
        record_hidden(program, self.end - 1, self.window)
        after = chosen_classes(program, tuple(range(self.end, count)))
        again = chosen_classes(program, tuple(range(self.start, count)))
        for name in again:
            self._run_again(program, program.classes[name], name, from_start=name in after)
        read = {port for name in again for port in _again(program.classes[name]).ports("input")} - {"h"}
        program.loop = Loop(
            self.start, self.end, self.passes, WindowStart(program, self.window, self.sinks).given(read), self.settle
        )
        if self.settle:
            program.states = (*program.states, StateSpec("count", TAKEN, ("B",), torch.int64, "overwrite"))
        return 1 + len(again)

    def _run_again(self, program: ProgramGraphs, cls: BlockClass, name: str, *, from_start: bool) -> None:
        graph = cls.again or without_new(cls)
        graph.name = f"{name}.again"
        confine(program, cls, graph, self.sinks)
        if from_start:
            self._from_start(cls, graph)
        graph.drop_dead()
        drop_ports(graph)
        infer_types(graph)
        cls.again = graph

    def _from_start(self, cls: BlockClass, graph: Graph) -> None:
        """Memories that wake writes are kept as they were at the window's start, and `graph` continues from there."""
        states, results = graph.ports("state"), graph.results()
        for memory in with_role(cls.states, "memory", "own"):
            if memory.name in cls.wake.returns:
                spec = replace(memory, role="start", part=memory.name, update="overwrite")
                cls.states = (*cls.states, spec)
                replace_uses(states[memory.name], graph.add_port("state", spec.name, spec.type()))
                results[spec.name] = results[memory.name]
        graph.set_returns(results)


def _again(cls: BlockClass) -> Graph:
    assert cls.again is not None
    return cls.again
