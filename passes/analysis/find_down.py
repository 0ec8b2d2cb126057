"""A block's MLP: the linear map by which it comes back to the hidden width, and those that make what that reads."""

from __future__ import annotations

from torch import fx

from sleepc.ir.graph import PARAMETERS, Graph, is_call
from sleepc.ir.types import IntType
from sleepc.ops import RECURRENCES
from sleepc.passes.analysis.find_sites import dims, find_attention
from sleepc.passes.analysis.linear_maps import LinearMap, all_maps, maps_before


def find_down(graph: Graph) -> LinearMap | None:
    """Of all linear maps to the width of h, whose inputs no attention and no recurrence gives, that with the most
    inputs; of equals the last. None if there is none: experts are batched, and packed streams have another width.
    """
    maps = all_maps(graph)
    calls = set(maps)
    mixers = {find_attention(graph), *(node for node in graph.calls() if is_call(node, *RECURRENCES))}
    width, order = dims(graph.ports()["h"])[-1], {node: i for i, node in enumerate(graph.calls())}
    found = [one for one in maps.values() if dims(one.call)[-1] == width and _is_inner(one.x, calls, mixers)]
    return max(found, key=lambda each: (int(dims(each.x)[-1]), order[each.call]), default=None)


def find_mlp(graph: Graph) -> dict[str, LinearMap]:
    """The linear maps of the MLP by name: `down`, and in their order `up0`, `up1`, .. that make what it reads; empty
    where `find_down` finds none.
    """
    down = find_down(graph)
    if down is None:
        return {}
    maps = all_maps(graph)
    ups = maps_before([down.x], maps)
    order = [node for node in graph.calls() if node in ups]
    return {"down": down, **{f"up{i}": maps[node] for i, node in enumerate(order)}}


def _is_inner(value: fx.Node, maps: set[fx.Node], mixers: set[fx.Node | None]) -> bool:
    """Is it made by linear maps alone, with what acts on each token between them? Not by a mixer, nor by h itself."""
    stack, seen = [value], set[fx.Node]()
    while stack:
        node = stack.pop()
        if node in maps or node in seen or isinstance(node.meta["type"], IntType):
            continue
        seen.add(node)
        if node in mixers or (node.op == "placeholder" and node.meta["port"].kind not in PARAMETERS):
            return False
        stack += node.all_input_nodes
    return True
