"""What the original's own cache takes, as it grows: layers with a window or chunks of their own stop at them, and
recurrent layers keep as much from the first token on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import networkx as nx
from torch import fx

from sleepc.ir.graph import Graph, is_call
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.types import TensorType
from sleepc.passes.analysis.find_sites import Site, dependence_of, dims, find_sites, recurrences_of
from sleepc.passes.lib.emit import aten

LINEAR = (aten.linear.default, aten.addmm.default, aten.mm.default, aten.matmul.default)
FACT = "kv_cache"  # its name in an artifact's report


@dataclass(frozen=True)
class KVCache:
    """`layers`: how many numbers the keys and values of a token are in layers that keep so many tokens (0: all), in
    the order of what they keep; `itemsize`: bytes of a number. What recurrent layers carry is like a token's in layers
    that keep one. Layers that use an earlier layer's keys again keep none.
    """

    layers: tuple[tuple[int, int], ...]
    itemsize: int

    def bytes(self, tokens: int) -> int:
        """What a sequence of so many tokens takes."""
        return self.itemsize * sum(numbers * min(tokens, kept or tokens) for numbers, kept in self.layers)

    @property
    def bytes_per_token(self) -> int:
        """What each token adds once the windows are full."""
        return self.itemsize * sum(numbers for numbers, kept in self.layers if not kept)

    @property
    def longest_window(self) -> int:
        """After how many tokens it grows evenly; 0 if it always does."""
        return max((kept for _, kept in self.layers), default=0)

    def break_even(self, state: int) -> int | None:
        """The fewest tokens that take as much as `state` bytes; None if it never grows so far."""
        enough = self.longest_window
        if self.bytes(enough) < state:
            if not self.bytes_per_token:
                return None
            return enough + -(-(state - self.bytes(enough)) // self.bytes_per_token)
        few = 0
        while enough - few > 1:
            middle = (few + enough) // 2
            few, enough = (few, middle) if self.bytes(middle) >= state else (middle, enough)
        return enough

    def in_dtype(self, itemsize: int) -> KVCache:
        """The same with numbers of so many bytes."""
        return KVCache(self.layers, itemsize)


def kv_cache(canonical: ProgramGraphs) -> KVCache:
    """That of a program at level CANONICAL, in its dtype."""
    found: Counter[int] = Counter()
    sites = find_sites(canonical)
    kept = {name: _numbers(canonical.classes[name].wake, site) for name, site in sites.items()}
    for block in canonical.layout:
        if block.cls in sites:
            found[sites[block.cls].mask.reach or 0] += kept[block.cls]
        found[1] += _carried(canonical.classes[block.cls].wake)
    layers = tuple((numbers, window) for window, numbers in sorted(found.items()) if numbers)
    return KVCache(layers, canonical.dtype.itemsize)


def _carried(graph: Graph) -> int:
    """How many numbers the block's own convolutions and recurrences carry from token to token."""
    total = 0
    for name, node in recurrences_of(graph).items():
        args: Any = node.args
        before = args[2] if name.startswith("tail") else args[5][0]
        total += prod(int(size) for size in dims(before)[1:])
    return total


def _numbers(graph: Graph, site: Site) -> int:
    """How many numbers of a token a layer keeps: its keys and values, or, if these are made by two linear maps in a
    row from the block's input (MLA), the fewest numbers between that input and them. Of keys that an earlier layer has
    kept it keeps none.
    """
    if site.placed:
        return 0
    plain, tokens = site.kv_heads * (site.d_k + site.d_v), dependence_of(graph).tokens
    maps: dict[fx.Node, int] = {site.x: 0}
    edges: nx.DiGraph[Any] = nx.DiGraph()
    for node in graph.calls():
        sources = [n for n in node.all_input_nodes if n in maps]
        if node in maps or node not in tokens or not sources:
            continue
        maps[node] = max(maps[n] for n in sources) + is_call(node, *LINEAR)
        size = prod(d for d in dims(node) if isinstance(d, int)) if isinstance(node.meta["type"], TensorType) else None
        edges.add_edge((node, "in"), (node, "out"), **({} if size is None else {"capacity": size}))
        edges.add_edges_from(((n, "out"), (node, "in")) for n in sources)
    if maps.get(site.v, 0) < 2:
        return plain
    edges.add_edges_from(((n, "out"), "cache") for n in site.node.args[1:3])
    return min(plain, int(nx.maximum_flow_value(edges, (site.x, "out"), "cache")))


def noted(cache: KVCache) -> list[list[int]]:
    """The layers as an artifact's report has them."""
    return [list(layer) for layer in cache.layers]


def from_report(report: dict[str, Any], itemsize: int) -> KVCache | None:
    """That of an artifact's original; None if its report does not say so in this form."""
    layers = report.get(FACT)
    fits = isinstance(layers, Sequence) and all(
        isinstance(layer, list) and len(layer) == 2 and all(type(n) is int and n >= 0 for n in layer)
        for layer in layers
    )
    return KVCache(tuple((numbers, kept) for numbers, kept in layers), itemsize) if fits and layers else None
