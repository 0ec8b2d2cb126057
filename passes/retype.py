"""Run a program in another floating dtype than that of its checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from sleepc.ir.graph import Graph
from sleepc.ir.infer import infer_types
from sleepc.ir.program import ProgramGraphs, StateSpec
from sleepc.ir.types import TensorType
from sleepc.passes.base import Effect, Pass


@dataclass(frozen=True)
class Retype(Pass):
    """Every port, cast and state of the program's dtype becomes one of `dtype`; what is float32 by intention stays.

    With float64 as the target everything becomes float64, memories and gates too: that is the precision of an oracle.
    """

    dtype: torch.dtype
    name: ClassVar[str] = "retype"
    effect: ClassVar[Effect] = "APPROXIMATE"

    def run(self, program: ProgramGraphs) -> int:
        """The number of ports, casts and states changed."""
        old = {program.dtype}
        if self.dtype == torch.float64:
            old |= {torch.float32, torch.float16, torch.bfloat16}
        old.discard(self.dtype)
        if not old:
            return 0
        count = sum(self._graph(graph, old) for graph in program.graphs())
        for cls in program.classes.values():
            cls.states = tuple(self._state(s, old) for s in cls.states)
        program.dtype = self.dtype
        for graph in program.graphs():
            infer_types(graph)
        return count

    def _graph(self, graph: Graph, old: set[torch.dtype]) -> int:
        count = 0
        for node in graph.fx.nodes:
            type_ = node.meta.get("type")
            if node.op == "placeholder" and isinstance(type_, TensorType) and type_.dtype in old:
                node.meta["type"] = replace(type_, dtype=self.dtype)
                count += 1
            elif node.op == "call_function" and any(a in old for a in (*node.args, *node.kwargs.values()) if isinstance(a, torch.dtype)):
                node.args = tuple(self._new(a, old) for a in node.args)
                node.kwargs = {k: self._new(v, old) for k, v in node.kwargs.items()}
                count += 1
        return count

    def _new(self, argument: Any, old: set[torch.dtype]) -> Any:
        return self.dtype if isinstance(argument, torch.dtype) and argument in old else argument

    def _state(self, spec: StateSpec, old: set[torch.dtype]) -> StateSpec:
        return replace(spec, dtype=self.dtype) if spec.dtype in old else spec
