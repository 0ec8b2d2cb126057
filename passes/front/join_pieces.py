"""A tensor that is made empty and then filled piece by piece is its pieces, joined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import fx

from sleepc.ir.graph import Graph, is_call
from sleepc.ir.levels import mutates
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.base import Effect, Pass
from sleepc.passes.facts import FLAT, Fact
from sleepc.passes.lib.emit import aten

EMPTY = (aten.new_empty.default, aten.empty.memory_format, aten.empty_like.default)
Piece = tuple[int, int, fx.Node, fx.Node]  # from, to, what is copied, the copy


@dataclass(frozen=True)
class JoinPieces(Pass):
    """empty; empty[.., a:b] = x; empty[.., b:c] = y -> cat(x, y), if the pieces fill the whole of one dimension."""

    name: ClassVar[str] = "join-pieces"
    effect: ClassVar[Effect] = "EXACT"
    requires: ClassVar[tuple[Fact, ...]] = (FLAT,)

    def run(self, program: ProgramGraphs) -> int:
        """The number of tensors joined."""
        graph = program.embed
        order = {node: i for i, node in enumerate(graph.fx.nodes)}
        return sum(_join(graph, base, order) for base in graph.calls() if is_call(base, *EMPTY))


def _join(graph: Graph, base: fx.Node, order: dict[fx.Node, int]) -> int:
    slices = [n for n in base.users if is_call(n, aten.slice.Tensor) and any(map(_is_copy, n.users))]
    found = [_piece(n) for n in slices]
    pieces = sorted((p for p in found if p is not None), key=lambda p: p[0])
    dims = {n.args[1] for n in slices}
    if len(pieces) != len(slices) or len(dims) != 1:
        return 0
    dim: Any = dims.pop()
    size = base.meta["val"].shape[dim]
    ends = [end for _, end, _, _ in pieces]
    copies = {order[copy]: copy for *_, copy in pieces}
    first, last = copies[min(copies)], copies[max(copies)]
    readers = [user for user in base.users if user not in slices]
    if any(mutates(n.target) for n, at in order.items() if order[first] < at < order[last] and at not in copies):
        return 0  # a piece may have changed after it was copied
    if [0, *ends[:-1]] != [start for start, *_ in pieces] or ends[-1] != size:
        return 0
    if any(order[user] < order[last] for user in readers):
        return 0
    with graph.fx.inserting_after(last):
        whole = graph.fx.call_function(aten.cat.default, ([source for _, _, source, _ in pieces], dim))
    whole.meta = dict(base.meta)
    for user in readers:
        user.replace_input_with(base, whole)
    for node in (*copies.values(), *slices, base):
        graph.fx.erase_node(node)
    return 1


def _is_copy(node: fx.Node) -> bool:
    return is_call(node, aten.copy_.default)


def _piece(part: fx.Node) -> Piece | None:
    """What a slice is filled with; None if it is used otherwise or what is copied has another type."""
    if len(part.users) != 1:
        return None
    copy = next(iter(part.users))
    source: Any = copy.args[1]
    wanted, given = part.meta["val"], source.meta["val"]
    size = part.args[0].meta["val"].shape[part.args[1]]  # type: ignore[union-attr]
    start, end = (*part.args, None, None)[2:4]
    same = wanted.dtype == given.dtype and str(wanted.shape) == str(given.shape)
    if copy.users or copy.args[0] is not part or not same or not isinstance(size, int):
        return None
    if not isinstance(start or 0, int) or not isinstance(end or 0, int) or part.args[4:] not in ((), (1,)):
        return None
    begin, stop, _ = slice(start, end).indices(size)
    return begin, stop, source, copy
