"""Linear maps of one value become one call: a larger product takes less time than several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import fx

from sleepc.ir.graph import Graph, is_call
from sleepc.ir.infer import infer_types
from sleepc.ir.levels import aten
from sleepc.ir.parameters import shared_keys
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.base import Effect, Pass
from sleepc.passes.facts import SLEEPS, Fact
from sleepc.passes.lib.emit import Emit
from sleepc.passes.lib.match import through

Keys = Sequence[Mapping[str, str]]
"""The key of a port's parameter, by the port's name, for every block that has the graph."""


@dataclass(frozen=True)
class JoinLinears(Pass):
    """`sleepc.linears` for maps of a value that all have a bias, or none. Their weights are the model's own, or all the
    conversion's, which may be written in another precision; one that is also read elsewhere is left alone.
    """

    name: ClassVar[str] = "join-linears"
    effect: ClassVar[Effect] = "ROUNDING"  # heads are laid out otherwise, and products may be summed up otherwise
    requires: ClassVar[tuple[Fact, ...]] = (SLEEPS,)

    def run(self, program: ProgramGraphs) -> int:
        """The number of maps that are part of a joined one."""
        shared = shared_keys(program)
        return sum(_join(graph, keys, program, shared) for graph, keys in _graphs(program))


def _graphs(program: ProgramGraphs) -> Iterator[tuple[Graph, Keys]]:
    """Every graph with its keys. Outside of blocks a port is named by its key."""
    of_classes = {
        id(graph): [block.params for block in program.layout if program.classes[block.cls] is cls]
        for cls in program.classes.values()
        for graph in cls.graphs()
    }
    for graph in program.graphs():
        yield graph, of_classes.get(id(graph)) or [{name: name for name in graph.ports()}]


def _join(graph: Graph, keys: Keys, program: ProgramGraphs, shared: frozenset[str]) -> int:
    groups: dict[tuple[Any, ...], list[fx.Node]] = {}
    for node in graph.calls():
        params = _params(node)
        found = {block[name] for name in params for block in keys}
        if params and not found & shared:
            news = tuple(program.params[block[params[0]]].new for block in keys)
            groups.setdefault((through(node.args[0]), news, len(params)), []).append(node)
    joined = [members for members in groups.values() if len({node.args[1] for node in members}) == len(members) > 1]
    for members in joined:
        _replace(graph, members)
    if joined:
        graph.drop_dead()
        infer_types(graph)
    return sum(map(len, joined))


def _params(node: fx.Node) -> list[str]:
    """The ports of the weight, and of the bias if there is one; empty if it is not a linear map by parameters."""
    if not is_call(node, aten.linear.default) or node.kwargs:
        return []
    weights = [each for each in node.args[1:] if each is not None]
    ports = [each.meta.get("port") for each in weights if isinstance(each, fx.Node)]
    names = [port.name for port in ports if port is not None and port.kind in ("param", "const")]
    return names if len(names) == len(weights) else []


def _replace(graph: Graph, members: list[fx.Node]) -> None:
    """One call before the first of the maps. What is only read as heads is returned as heads."""
    first = members[0]
    emit = Emit(graph, first.meta.get("source", ""), first)
    biases = [node.args[2] for node in members if len(node.args) > 2 and node.args[2] is not None]
    heads = [_heads(node) for node in members]
    widths = {width for _, width in heads}
    width = widths.pop() if len(widths) == 1 else 0
    results = emit.ours("linears", first.args[0], [node.args[1] for node in members], biases or None, width=width)
    for i, node in enumerate(members):
        (heads[i][0] if width else node).replace_all_uses_with(emit.item(results, i))


def _heads(linear: fx.Node) -> tuple[fx.Node, int]:
    """If all that reads the map is [B, T, H*D] -> [B, T, H, D] -> [B, H, T, D]: the end of it and D; otherwise the
    map and 0.
    """
    readers = list(linear.users)
    if len(readers) != 1 or not is_call(readers[0], aten.reshape.default, aten.view.default):
        return linear, 0
    dims, last = readers[0].meta["type"].dims, list(readers[0].users)
    if len(dims) != 4 or dims[:2] != linear.meta["type"].dims[:2] or not all(isinstance(d, int) for d in dims[2:]):
        return linear, 0
    swapped = len(last) == 1 and is_call(last[0], aten.transpose.int) and set(last[0].args[1:]) in ({1, 2}, {-3, -2})
    return (last[0], int(dims[3])) if swapped else (linear, 0)
