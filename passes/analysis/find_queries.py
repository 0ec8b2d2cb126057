"""The linear map that makes a block's queries."""

from __future__ import annotations

from torch import fx

from sleepc.ir.graph import Graph
from sleepc.passes.analysis.find_sites import find_attention
from sleepc.passes.analysis.linear_maps import LinearMap, all_maps, maps_before


def find_queries(graph: Graph) -> dict[str, LinearMap]:
    """The last linear map on the way to attention's q, as `query`; empty if the block has no attention, if there are
    several, or if that map makes keys or values as well: then it cannot change alone.
    """
    attention = find_attention(graph)
    if attention is None:
        return {}
    maps, (q, *others) = all_maps(graph), (node for node in attention.args[:3] if isinstance(node, fx.Node))
    queries = maps_before([q], maps)
    return {"query": maps[queries.pop()]} if len(queries) == 1 and not queries & maps_before(others, maps) else {}
