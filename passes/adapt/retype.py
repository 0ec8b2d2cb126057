"""Run a program in a wider floating dtype than its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from sleepc.errors import UsageError
from sleepc.ir.graph import Graph
from sleepc.ir.infer import infer_types
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.types import TensorType
from sleepc.passes.base import Effect, Pass


@dataclass(frozen=True)
class Retype(Pass):
    """Every port, cast and state of the program's dtype becomes one of `dtype`.

    With float64 as the target everything becomes float64, memories and gates too: that is the precision of an oracle.
    Raises UsageError for a narrower dtype: a float32 program does not say which of its values a half-precision model
    would keep in float32 (rotary angles, norms), so such a program has to be captured in that dtype.
    """

    dtype: torch.dtype
    name: ClassVar[str] = "retype"
    effect: ClassVar[Effect] = "ROUNDING"

    def run(self, program: ProgramGraphs) -> int:
        """The number of ports, casts and states changed."""
        if self.dtype.itemsize < program.dtype.itemsize:
            narrow, wide = (str(d).removeprefix("torch.") for d in (self.dtype, program.dtype))
            raise UsageError(
                f"this program was converted in {wide} and cannot run in {narrow}",
                where="--dtype",
                fix=f"Convert it with --dtype {narrow}.",
            )
        old = {program.dtype}
        if self.dtype == torch.float64:
            old |= {torch.float32, torch.float16, torch.bfloat16}
        old.discard(self.dtype)
        if not old:
            return 0
        count = sum(_retype(graph, old, self.dtype) for graph in program.graphs())
        for cls in program.classes.values():
            cls.states = tuple(replace(s, dtype=self.dtype) if s.dtype in old else s for s in cls.states)
        program.dtype = self.dtype
        for graph in program.graphs():
            infer_types(graph)
        return count


def _retype(graph: Graph, old: set[torch.dtype], new: torch.dtype) -> int:
    """Change ports and dtype arguments of one graph, and return how many nodes that were."""

    def renewed(argument: Any) -> Any:
        return new if isinstance(argument, torch.dtype) and argument in old else argument

    count = 0
    for node in graph.fx.nodes:
        type_ = node.meta.get("type")
        if node.op == "placeholder" and isinstance(type_, TensorType) and type_.dtype in old:
            node.meta["type"] = replace(type_, dtype=new)
            count += 1
        elif node.op == "call_function":
            before = (node.args, dict(node.kwargs))
            node.args = tuple(renewed(a) for a in node.args)
            node.kwargs = {k: renewed(v) for k, v in node.kwargs.items()}
            count += before != (node.args, dict(node.kwargs))
    return count
