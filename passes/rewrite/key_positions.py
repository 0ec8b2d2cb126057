"""Keys that are kept without their positions, and get them when they are read: positions are applied to the keys of a
KV window as the model applies them to new ones, for other positions than those that they came with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import fx

from sleepc.errors import Refusal
from sleepc.ir.graph import Graph, is_call
from sleepc.ir.types import TensorType
from sleepc.passes.analysis.dependence import ARANGES, find_dependence
from sleepc.passes.analysis.find_sites import Site, positions_reach
from sleepc.passes.lib.emit import Emit, aten

HELD = ".held."  # between the name of what embed makes of positions and the number of the positions of keys


@dataclass(frozen=True)
class KeyPositions:
    """The positions at which a layer sees the keys in sinks + `window` slots; `every`: tokens from sleep to sleep.

    Keys of the ring stand where they came. So do sinks if `own` is 0; in a layer whose own window is `own` tokens
    they stand just before what the ring held at the last sleep, or nearer: at a distance of less than `own` from every
    token until the next sleep (docs/decisions/0011).
    """

    window: int
    sinks: int
    own: int
    every: int

    def emit(self, e: Emit, position: fx.Node, since: fx.Node, offset: fx.Node | None) -> fx.Node:
        """[B,sinks+window], from the counters [B] before this call; any value where a slot is empty. `offset`: what the
        model counts less than the stream has tokens.
        """
        slot = e.call(aten.arange.default, self.sinks + self.window)
        last = e.unsqueeze(e.call(aten.sub.Scalar, position, 1), 1)
        ring = e.sub(last, e.call(aten.remainder.Scalar, e.sub(last, slot), self.window))
        start = e.sub(position, since)
        if offset is not None:
            ring, start = e.sub(ring, e.unsqueeze(offset, 1)), e.sub(start, offset)
        sinks: fx.Node = slot
        if self.own:
            reach = min(self.window + self.sinks, self.own - self.every)
            near = e.call(aten.clamp.default, e.call(aten.sub.Scalar, start, reach), 0)
            sinks = e.add(slot, e.unsqueeze(near, 1))
        held = e.where(e.call(aten.lt.Scalar, slot, self.sinks), sinks, ring)
        return e.call(aten.clamp.default, held, 0)


def on_tokens(embed: Graph) -> bool:
    """Are positions added to the tokens themselves? Kept keys cannot get others then."""
    return embed.results()["h"] in find_dependence(embed, (), ("positions",)).positions


def held_name(extra: str, number: int) -> str:
    """The name of what embed makes, like `extra`, of the positions of kept keys."""
    return f"{extra}{HELD}{number}"


def is_held(name: str) -> bool:
    """Is it one of these?"""
    return HELD in name


def unheld(name: str) -> str:
    """The name of what embed makes of the positions of new tokens, for one of these."""
    return name.split(HELD)[0]


def read_extras(graph: Graph, site: Site) -> list[str]:
    """What embed makes of positions and the block applies to k.

    Raises Refusal(POSITIONS) if keys cannot be given other positions: values depend on them too, or the block counts
    positions itself.
    """
    if positions_reach(graph, site.v):
        raise Refusal("POSITIONS", "values depend on positions, not only queries and keys", where=_source(site))
    nodes = applied_to_keys(graph, site)
    if any(is_call(node, *ARANGES) for node in nodes):
        raise Refusal("POSITIONS", "the block counts positions itself", where=_source(site))
    found = {p for node in nodes for p in node.all_input_nodes if p.op == "placeholder"}
    return [name for name, port in graph.ports("input").items() if port in found and name != "h"]


def at_positions(graph: Graph, site: Site, kept: fx.Node, extras: dict[str, fx.Node]) -> fx.Node:
    """`kept` [B,Hkv,W,D], keys without positions, as attention sees them; `extras` are ports, made of W positions in
    place of those of the new tokens.
    """
    e = Emit(graph, str(site.node.meta.get("source", "")), site.node)
    ports = graph.ports()
    new = {site.k: e.cast(kept, site.k.meta["type"].dtype), **{ports[name]: port for name, port in extras.items()}}
    copy_nodes(e, applied_to_keys(graph, site), new, lambda dim: e.size(kept, 2) if dim == "T" else e.size(kept, 0))
    key = site.node.args[1]
    assert isinstance(key, fx.Node)
    return new[key]


def copy_nodes(
    e: Emit, nodes: list[fx.Node], new: dict[fx.Node, fx.Node], size: Callable[[int | str], fx.Node]
) -> None:
    """Write `nodes` once more, on the values of `new`, which gets theirs. Sizes of the call, read from what is not
    copied, become those that `size` gives.
    """

    def other(node: fx.Node) -> fx.Node:
        if node in new:
            return new[node]
        if is_call(node, aten.sym_size.int):
            source, dim = node.args
            type_ = source.meta.get("type") if isinstance(source, fx.Node) else None
            if source in new:
                new[node] = e.size(new[source], dim)  # type: ignore[index,arg-type]
            elif isinstance(type_, TensorType) and not isinstance(type_.dims[dim], int):  # type: ignore[index]
                new[node] = size(type_.dims[dim])  # type: ignore[index]
        return new.get(node, node)

    for node in nodes:
        args, kwargs = fx.map_arg((_sized(node, size), node.kwargs), other)
        new[node] = e.call(node.target, *args, **kwargs)


def _sized(node: fx.Node, size: Callable[[int | str], fx.Node]) -> tuple[Any, ...]:
    """The arguments of a call; those of a reshape without -1, which of nothing (no slots) could be any number."""
    if not is_call(node, aten.reshape.default):
        return node.args
    source, shape = node.args
    dims = [size(dim) if dim in ("B", "T") else dim if isinstance(dim, int) else -1 for dim in node.meta["type"].dims]
    return source, [dim if asked == -1 else asked for asked, dim in zip(shape, dims, strict=True)]  # type: ignore[arg-type]


def with_slots(type_: TensorType, slots: int) -> TensorType:
    """The type of what is made of so many positions, like one that is made of T."""
    return replace(type_, dims=tuple(slots if dim == "T" else dim for dim in type_.dims))


def made_of(graph: Graph, result: fx.Node, source: fx.Node) -> list[fx.Node]:
    """The calls that make `result` of `source`, in order."""
    made: set[fx.Node] = {source}
    for node in graph.calls():
        if not is_call(node, aten.sym_size.int) and made.intersection(node.all_input_nodes):
            made.add(node)
    needed = {result}
    for node in reversed(list(graph.fx.nodes)):
        if node in needed:
            needed.update(node.all_input_nodes)
    return [node for node in graph.calls() if node in made and node in needed and node is not source]


def applied_to_keys(graph: Graph, site: Site) -> list[fx.Node]:
    """The calls that apply positions to k, and those that only prepare these positions, or are as long as them: what
    reads a shape alone (ones, for the radius of a rotation) depends on no position.
    """
    key = site.node.args[1]
    assert isinstance(key, fx.Node)
    found = find_dependence(graph, ("h",), tuple(n for n in graph.ports("input") if n != "h"))
    needed = set(made_of(graph, key, site.k))
    for node in reversed(list(graph.calls())):
        if node in needed:
            sources = set(node.all_input_nodes).difference(found.tokens)
            needed.update(n for n in sources if n in found.positions or _is_as_long_as_tokens(n))
    return [node for node in graph.calls() if node in needed]


def _is_as_long_as_tokens(node: fx.Node) -> bool:
    type_ = node.meta.get("type")
    return node.op == "call_function" and isinstance(type_, TensorType) and "T" in type_.dims


def _source(site: Site) -> str:
    return str(site.node.meta.get("source", ""))
