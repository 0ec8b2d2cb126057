"""What one graph returns and no other reads: masks and positions of layers that were replaced, unused counters."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import ClassVar

from sleepc.ir.graph import Graph
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.analysis.givers import givers
from sleepc.passes.base import Effect, Pass
from sleepc.passes.facts import SLEEPS, Fact


@dataclass(frozen=True)
class DropUnread(Pass):
    """Forget inputs that a graph does not read, results that are neither states nor read, and what made them."""

    name: ClassVar[str] = "drop-unread"
    effect: ClassVar[Effect] = "EXACT"
    requires: ClassVar[tuple[Fact, ...]] = (SLEEPS,)

    def run(self, program: ProgramGraphs) -> int:
        """The number of inputs and results forgotten."""
        pairs = [(graph, giver) for graph, giver in givers(program) if giver is not None]
        count = sum(_drop_inputs(graph) for graph, _ in pairs)
        states = {spec.name for spec in program.states}
        needed: defaultdict[int, set[str]] = defaultdict(lambda: {"h", *states})
        for graph, giver in pairs:
            needed[id(giver)] |= {*graph.ports("input")}
        return count + sum(_drop_results(giver, needed[id(giver)]) for giver in {id(g): g for _, g in pairs}.values())


def _drop_inputs(graph: Graph) -> int:
    unread = [node for name, node in graph.ports("input").items() if not node.users and name != "h"]
    for node in unread:
        graph.fx.erase_node(node)
    return len(unread)


def _drop_results(graph: Graph, needed: set[str]) -> int:
    results = graph.results()
    kept = {name: node for name, node in results.items() if name in needed}
    if len(kept) < len(results):
        graph.set_returns(kept)
        graph.drop_dead()
    return len(results) - len(kept)
