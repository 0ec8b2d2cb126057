"""Several tensors that pass from block to block become one: each as [B,T,d], side by side in one [B,T,D]."""

from __future__ import annotations

from itertools import pairwise
from math import prod

import torch
from torch import fx

from sleepc.errors import Refusal
from sleepc.ir.graph import Graph
from sleepc.passes.analysis.dependence import find_dependence
from sleepc.passes.lib.emit import aten
from sleepc.passes.lib.region import is_tensor_like
from sleepc.passes.lib.values import FlatEmit, call_sizes, is_size, is_tensor, val


def pack_streams(flat: Graph, sites: list[fx.Node], attentions: list[fx.Node]) -> list[fx.Node]:
    """Cut the graph before the first of `sites`, between two `attentions`, and behind the last one, each time where the
    fewest numbers are on their way, and let one tensor take over those that are made behind `sites`: the borders.

    What is made of the tokens before all sites is read by blocks as an extra, unless it is what the queries of the next
    attention are made of: then it is taken over as well, if it has arrived by the next border. Every value keeps its
    place as long as it is on its way, and all borders are equally wide.

    Raises Refusal(BLOCKS) if what is on its way is nowhere made of tensors [B,T,..] in the dtype of values.
    """
    traffic = _Traffic(flat, sites, val(attentions[0].args[2]).dtype)  # type: ignore[arg-type]
    stops = [traffic.order[site] for site in attentions] + [traffic.order[flat.results()["logits"]]]
    cuts = [traffic.narrowest(start, end) for start, end in pairwise(stops)]
    first = traffic.order[sites[0]]
    cuts = [traffic.narrowest(traffic.last_extra(first, cuts[0]), first, cuts[0]), *cuts]
    loads = [traffic.late(cut) for cut in cuts]
    for load, site, (cut, until) in zip(loads, attentions, pairwise(cuts), strict=False):
        if not load or site.args[0] not in traffic.behind:  # before all sites there is nothing else to take over
            load += traffic.early(cut, until)
    places, width = _places(traffic, loads)
    now: dict[fx.Node, fx.Node] = {}
    return [_take_over(traffic, cut, load, now, places, width) for cut, load in zip(cuts, loads, strict=True)]


class _Traffic:
    """Which values that are made of the tokens are on their way, behind each node of a flat graph."""

    def __init__(self, flat: Graph, sites: list[fx.Node], dtype: torch.dtype) -> None:
        self.graph, self.dtype, self.nodes = flat, dtype, list(flat.fx.nodes)
        self.order = {node: i for i, node in enumerate(self.nodes)}
        self.batch, self.length = call_sizes(flat)
        self.vocab = str(val(flat.results()["logits"]).shape[-1])
        tokens, self.behind = find_dependence(flat, ("tokens",), ("positions",)).tokens, set(sites)
        self.last: dict[fx.Node, int] = {}
        self.over: list[list[fx.Node]] = []
        for i, node in enumerate(self.nodes):
            if node in tokens and node.op == "call_function" and is_tensor_like(node):
                self.last[node] = max((self.order[user] for user in node.users if not is_size(user)), default=i)
                if self.behind.intersection(node.all_input_nodes):
                    self.behind.add(node)
            before = [*self.over[-1], node] if self.over else [node]
            self.over.append([n for n in before if self.last.get(n, -1) > i])

    def late(self, cut: int) -> list[fx.Node]:
        """The values behind sites that are on their way behind the node of number `cut`."""
        return [n for n in self.over[cut] if n in self.behind]

    def early(self, cut: int, until: int) -> list[fx.Node]:
        """Those before all sites that have arrived by the next cut."""
        return [n for n in self.over[cut] if n not in self.behind and self.last[n] <= until and self._fits(n)]

    def last_extra(self, end: int, until: int) -> int:
        """Behind which node before the first attention all is made that extras are made of: early values that are on
        their way over the next cut.
        """
        needed = {n for n in self.over[until] if n not in self.behind}
        for node in reversed(self.nodes[: until + 1]):
            if node in needed:
                needed.update(n for n in node.all_input_nodes if n in self.last)
        return max((self.order[n] for n in needed if self.order[n] < end), default=0)

    def narrowest(self, start: int, end: int, until: int | None = None) -> int:
        """The last place from one node to another behind which the fewest numbers are on their way; with `until` it is
        the first cut, before all sites.
        """
        best: tuple[int, int] | None = None
        for cut in range(start, end):
            load = self.late(cut) if until is None else self.early(cut, until)
            if load and all(self._fits(n) for n in load):
                found = (sum(map(self.width, self.over[cut])), -cut)
                best = min(best, found) if best else found
        if best is None:
            raise Refusal(
                "BLOCKS",
                "two attention layers lie in one block: what passes between them are not tensors [B, T, ..]",
                where=str(self.nodes[end].meta.get("source", "")),
                fix="Blocks pass on one tensor of one dtype; --dtype float32 makes one of several dtypes.",
            )
        return -best[1]

    def _fits(self, node: fx.Node) -> bool:
        if not is_tensor(node) or val(node).dtype != self.dtype:
            return False
        shape = [str(size) for size in val(node).shape]
        counted = [sum(size in names for size in shape) for names in (self.batch, self.length)]
        rest = [size for size in shape if size not in self.batch | self.length]
        return counted == [1, 1] and all(size.isdigit() for size in rest) and shape[-1] != self.vocab

    def rows_first(self, node: fx.Node) -> list[int]:
        """Its dimensions, rows and tokens before all others."""
        shape = [str(size) for size in val(node).shape]
        names = (self.batch, self.length)
        first = [next(i for i, size in enumerate(shape) if size in each) for each in names]
        return [*first, *(i for i in range(len(shape)) if i not in first)]

    def sizes(self, node: fx.Node) -> list[int]:
        """Those of its other dimensions."""
        return [int(val(node).shape[i]) for i in self.rows_first(node)[2:]]

    def width(self, node: fx.Node) -> int:
        """How many numbers it has for each token."""
        return prod(size for size in val(node).shape if isinstance(size, int)) if is_tensor(node) else 0


def _places(traffic: _Traffic, loads: list[list[fx.Node]]) -> tuple[dict[fx.Node, int], int]:
    """Where each value begins in the tensors that take it over: the first room that is free, the widest value first;
    and how wide those tensors are.
    """
    places: dict[fx.Node, int] = {}
    end = 0
    for load in loads:
        for node in sorted((n for n in load if n not in places), key=lambda n: -traffic.width(n)):
            taken = sorted((places[n], places[n] + traffic.width(n)) for n in load if n in places)
            place = 0
            for start, stop in taken:
                if start - place < traffic.width(node):
                    place = stop
            places[node] = place
            end = max(end, place + traffic.width(node))
    return places, end


def _take_over(
    traffic: _Traffic,
    cut: int,
    load: list[fx.Node],
    now: dict[fx.Node, fx.Node],
    places: dict[fx.Node, int],
    width: int,
) -> fx.Node:
    """Write the border behind node `cut`; from there on all read the values of `load` out of it. `now`: what stands for
    a value since the border before.
    """
    e = FlatEmit(traffic.graph, str(traffic.nodes[cut].meta.get("source", "")), traffic.nodes[cut + 1])
    parts, end = [], 0
    for node in sorted(load, key=places.__getitem__):
        value = _flat(e, traffic, node, now.get(node, node))
        parts.append(_padded(e, value, places[node] - end, 0))
        end = places[node] + traffic.width(node)
    parts[-1] = _padded(e, parts[-1], 0, width - end)
    border = e.call(aten.cat.default, parts, 2) if len(parts) > 1 else parts[0]
    for node in load:
        before = now.get(node, node)
        readers = [user for user in before.users if traffic.order.get(user, -1) > cut]
        now[node] = _unpacked(e, traffic, node, border, places[node])
        for reader in readers:
            reader.replace_input_with(before, now[node])
    return border


def _padded(e: FlatEmit, value: fx.Node, left: int, right: int) -> fx.Node:
    return e.call(aten.constant_pad_nd.default, value, [left, right]) if left or right else value


def _flat(e: FlatEmit, traffic: _Traffic, node: fx.Node, value: fx.Node) -> fx.Node:
    """The value as [B,T,d]."""
    turned, count = traffic.rows_first(node), len(traffic.sizes(node))
    if turned != sorted(turned):
        value = e.call(aten.permute.default, value, turned)
    if not count:
        return e.unsqueeze(value, 2)
    return e.call(aten.flatten.using_ints, value, 2, -1) if count > 1 else value


def _unpacked(e: FlatEmit, traffic: _Traffic, node: fx.Node, border: fx.Node, place: int) -> fx.Node:
    """The value that stands at a place of a border, in its own shape."""
    turned, sizes = traffic.rows_first(node), traffic.sizes(node)
    value = e.call(aten.slice.Tensor, border, 2, place, place + traffic.width(node))
    if not sizes:
        value = e.call(aten.squeeze.dim, value, 2)
    elif len(sizes) > 1:
        value = e.call(aten.unflatten.int, value, 2, sizes)
    if turned != sorted(turned):
        value = e.call(aten.permute.default, value, [turned.index(i) for i in range(len(turned))])
    return value
