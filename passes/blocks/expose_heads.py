"""q and k before positions stand as heads by tokens, even if a model applies positions the other way round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from sleepc.ir.graph import Graph
from sleepc.ir.infer import infer_types
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.analysis.find_sites import Dominators, dependence_of, dims, find_attention, turned
from sleepc.passes.base import Effect, Pass
from sleepc.passes.facts import BLOCKS, UNCLOCKED, Fact
from sleepc.passes.lib.emit import aten


@dataclass(frozen=True)
class ExposeHeads(Pass):
    """Let q and k before positions exist as [B,H,T,D] if positions are applied to [B,T,H,D]: the value is transposed
    and back.
    """

    name: ClassVar[str] = "expose-heads"
    effect: ClassVar[Effect] = "EXACT"
    requires: ClassVar[tuple[Fact, ...]] = (BLOCKS, UNCLOCKED)

    def run(self, program: ProgramGraphs) -> int:
        """The number of values turned."""
        return sum(_expose(cls.wake) for cls in program.classes.values())


def _expose(graph: Graph) -> int:
    attention = find_attention(graph)
    if attention is None:
        return 0
    tree = Dominators(graph, dependence_of(graph))
    found: dict[fx.Node, None] = {}
    for value in attention.args[:2]:
        assert isinstance(value, fx.Node)
        origin = tree.origin(value)
        if dims(origin) == turned(value):
            found[origin] = None
    for origin in found:
        users = list(origin.users)
        with graph.fx.inserting_after(origin):
            over = graph.fx.call_function(aten.transpose.int, (origin, 1, 2))
        with graph.fx.inserting_after(over):
            back = graph.fx.call_function(aten.transpose.int, (over, 1, 2))
        for node in (over, back):
            node.meta = {"source": origin.meta.get("source", "")}
        for user in users:
            user.replace_input_with(origin, back)
    if found:
        infer_types(graph)
    return len(found)
