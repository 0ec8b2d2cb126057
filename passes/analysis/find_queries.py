"""The linear map that makes a block's queries."""

from __future__ import annotations

from torch import fx

from sleepc.ir.graph import Graph
from sleepc.passes.analysis.find_sites import find_attention
from sleepc.passes.analysis.linear_maps import LinearMap, linear_maps


def find_queries(graph: Graph) -> dict[str, LinearMap]:
    """The last linear map on the way to attention's q, as `query`; empty if the block has no attention, if there are
    several, or if that map makes keys or values as well: then it cannot change alone.
    """
    attention = find_attention(graph)
    if attention is None:
        return {}
    maps = {one.call: one for port in graph.ports("param").values() for one in linear_maps(port)}
    queries, others = (_last_maps(nodes, set(maps)) for nodes in (attention.args[:1], attention.args[1:3]))
    return {"query": maps[queries.pop()]} if len(queries) == 1 and not queries & others else {}


def _last_maps(nodes: tuple[object, ...], maps: set[fx.Node]) -> set[fx.Node]:
    """The maps whose results these are made of, by other operators alone."""
    stack, seen, found = [node for node in nodes if isinstance(node, fx.Node)], set[fx.Node](), set[fx.Node]()
    while stack:
        node = stack.pop()
        if node in maps:
            found.add(node)
        elif node not in seen:
            seen.add(node)
            stack += node.all_input_nodes
    return found
