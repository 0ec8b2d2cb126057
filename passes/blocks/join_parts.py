"""Keys (or queries) that are joined from parts of different origin, some with positions and some without (MLA)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from sleepc.errors import Refusal
from sleepc.ir.graph import Graph, is_call
from sleepc.ir.infer import infer_types
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.analysis.find_sites import Dominators, dependence_of, dims, find_attention, turned
from sleepc.passes.base import Effect, Pass
from sleepc.passes.facts import BLOCKS, UNCLOCKED, Fact
from sleepc.passes.lib.emit import Emit, aten


@dataclass(frozen=True)
class HeadPart:
    """One part of a value [B,H,T,D]: channels `start` to `end`, made by `spread` (expansions over heads) from `made`,
    which has positions in it if it is not `source` itself.
    """

    start: int
    end: int
    value: fx.Node
    spread: tuple[fx.Node, ...]
    made: fx.Node
    source: fx.Node


@dataclass(frozen=True)
class JoinParts(Pass):
    """Let q and k before positions be there as one value: the parts are joined before positions are applied to some of
    them, and taken apart again.

    Raises Refusal(MLA) if a part before positions is not found.
    """

    name: ClassVar[str] = "join-parts"
    effect: ClassVar[Effect] = "EXACT"
    requires: ClassVar[tuple[Fact, ...]] = (BLOCKS, UNCLOCKED)

    def run(self, program: ProgramGraphs) -> int:
        """The number of values joined."""
        return sum(_join_parts(cls.wake) for cls in program.classes.values())


def _join_parts(graph: Graph) -> int:
    count, attention = 0, find_attention(graph)
    for value in attention.args[:2] if attention else ():
        assert isinstance(value, fx.Node)
        tree = Dominators(graph, dependence_of(graph))
        if is_call(value, aten.cat.default) and dims(tree.origin(value)) not in (dims(value), turned(value)):
            _join(graph, value, _parts(tree, value))
            count += 1
    if count:
        infer_types(graph)
    return count


def _parts(tree: Dominators, value: fx.Node) -> list[HeadPart]:
    tensors, dim = value.args[0], value.args[1] if len(value.args) > 1 else 0
    parts, start = [], 0
    for tensor in tensors:  # type: ignore[union-attr]
        assert isinstance(tensor, fx.Node)
        spread: list[fx.Node] = []
        made = tensor
        while is_call(made, aten.expand.default):
            spread.insert(0, made)
            made = made.all_input_nodes[0]
        source = tree.origin(made)
        if dim not in (-1, 3) or dims(source) != dims(made):
            raise _refusal(value)
        end = start + int(dims(tensor)[3])
        parts.append(HeadPart(start, end, tensor, tuple(spread), made, source))
        start = end
    return parts


def _join(graph: Graph, value: fx.Node, parts: list[HeadPart]) -> None:
    later = _below([part.source for part in parts], value)
    order = {node: i for i, node in enumerate(graph.fx.nodes)}
    outside = [user for node in later for user in node.users if user not in later]
    if any(part.source in later for part in parts) or any(order[user] < order[value] for user in outside):
        raise _refusal(value)
    readers = {part: [user for user in part.source.users if user in later] for part in parts}
    e = Emit(graph, str(value.meta.get("source", "")), value)
    spread = []
    for part in parts:
        tensor = part.source
        for step in part.spread:
            tensor = e.call(step.target, tensor, *step.args[1:], **step.kwargs)
        spread.append(tensor)
    whole = e.call(aten.cat.default, spread, 3)
    for part in parts:
        piece = e.call(aten.slice.Tensor, whole, 3, part.start, part.end)
        for dim in range(3):
            if dims(part.source)[dim] != dims(part.value)[dim]:
                piece = e.call(aten.slice.Tensor, piece, dim, 0, 1)  # before it was expanded
        for user in readers[part]:
            user.replace_input_with(part.source, piece)
    for node in later[:-1]:  # which now read what stands just before `value`
        value.prepend(node)


def _below(sources: list[fx.Node], value: fx.Node) -> list[fx.Node]:
    """The nodes on the ways from `sources` to `value`, `value` too, in order."""
    above = {value}
    for node in reversed(value.graph.nodes):
        if node in above:
            above.update(node.all_input_nodes)
    found: dict[fx.Node, None] = {}
    for node in value.graph.nodes:
        if node in above and any(n in found or n in sources for n in node.all_input_nodes):
            found[node] = None
    return list(found)


def _refusal(value: fx.Node) -> Refusal:
    return Refusal(
        "MLA",
        "keys or queries are joined from parts, and one of them before positions is not found",
        where=str(value.meta.get("source", "")),
        fix="sleepc's memories read q and k before positions are applied. Please report the model.",
    )
