"""q and k before positions stand as heads by tokens, even if a model applies positions the other way round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import fx

from sleepc.ir.graph import Graph, is_call
from sleepc.ir.infer import infer_types
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.analysis.find_sites import Dominators, dependence_of, dims, find_attention, turned
from sleepc.passes.base import Effect, Pass
from sleepc.passes.facts import BLOCKS, UNCLOCKED, Fact
from sleepc.passes.lib.emit import aten


@dataclass(frozen=True)
class ExposeHeads(Pass):
    """Let q and k before positions exist as [B,H,T,D] if positions are applied to [B,T,H,D]: the value is transposed
    and back. Heads that are repeated after positions are applied are repeated before.
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
    repeated = [node for node in attention.all_input_nodes[:2] if _repeats_late(tree, node)]
    for node in repeated:
        _repeat_early(graph, node, tree.origin(node.all_input_nodes[0]))
    if repeated:
        infer_types(graph)
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
    return len(found) + len(repeated)


def _repeats_late(tree: Dominators, value: fx.Node) -> bool:
    """Is it [B,H,T,D] whose heads stand there several times, of which each had positions applied to it?"""
    if not is_call(value, aten.repeat.default):
        return False
    once: Any = value.args[0]
    times: Any = value.args[1]
    origin = tree.origin(once)
    return origin is not once and dims(origin) == dims(once) and [*times[:1], *times[2:]] == [1, 1, 1]


def _repeat_early(graph: Graph, value: fx.Node, origin: fx.Node) -> None:
    users = list(origin.users)
    with graph.fx.inserting_after(origin):
        early = graph.fx.call_function(aten.repeat.default, (origin, value.args[1]))
    early.meta = {"source": value.meta.get("source", "")}
    for user in users:
        user.replace_input_with(origin, early)
    value.replace_all_uses_with(value.all_input_nodes[0])
    graph.fx.erase_node(value)
