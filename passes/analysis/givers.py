"""Which graph gives what another reads, in a program at level STEP."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from sleepc.ir.graph import Graph
from sleepc.ir.program import ProgramGraphs


def givers(program: ProgramGraphs) -> Iterator[tuple[Graph, Graph | None]]:
    """Every graph, with the one whose results its inputs are: embed's for blocks and head, those of the clock for
    sleeps, those of the loop's `given` for passes of a loop. None for these three, which read counters and tokens.
    """
    given = program.loop.given if program.loop is not None else None
    yield from ((graph, None) for graph in (program.embed, program.clock, given) if graph is not None)
    yield program.head, program.embed
    for cls in program.classes.values():
        for graph, giver in ((cls.wake, program.embed), (cls.sleep, program.clock), (cls.again, given)):
            if graph is not None:
                yield graph, giver


def origin(node: fx.Node, giver: Graph | None) -> fx.Node:
    """What a port's value is in the graph that gives it; any other node as it is. h comes from the block before."""
    port = node.meta.get("port")
    if giver is None or port is None or port.kind != "input" or port.name == "h":
        return node
    return giver.results().get(port.name, node)
