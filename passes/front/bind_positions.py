"""A model that counts positions itself (arange over its length) gets them from outside instead, one row each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, fx
from torch._ops import OpOverload

from sleepc.errors import Refusal
from sleepc.ir.exported import example_of
from sleepc.ir.graph import Graph, is_call
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.analysis.dependence import ARANGES, find_dependence
from sleepc.passes.base import Effect, Pass
from sleepc.passes.facts import FLAT, FUNCTIONAL, MASKS_KNOWN, Fact
from sleepc.passes.lib.emit import aten
from sleepc.passes.lib.region import is_tensor_like
from sleepc.passes.lib.values import call_sizes, is_tensor, val


@dataclass(frozen=True)
class BindPositions(Pass):
    """Replace each arange over the tokens of a call, if floats made from it meet the tokens, by `positions` [B,T].

    Masks are evaluated before, so that no arange is left that only makes a mask. Raises Refusal(POSITIONS) if an
    arange does not count from 0 over the call's tokens, or if the model's operations on it do not work with one row
    of positions per sequence.
    """

    name: ClassVar[str] = "bind-positions"
    effect: ClassVar[Effect] = "EXACT"
    requires: ClassVar[tuple[Fact, ...]] = (FLAT, FUNCTIONAL, MASKS_KNOWN)

    def run(self, program: ProgramGraphs) -> int:
        """The number of aranges replaced."""
        graph = program.embed
        bound = _counting_aranges(graph)
        for arange in bound:
            _bind(graph, arange, graph.ports()["positions"])
        return len(bound)


def _meets_tokens(graph: Graph, source: fx.Node) -> bool:
    """Does a float made from `source` alone enter an operation with the tokens?"""
    dependence = find_dependence(graph, ("tokens",), ("positions",))
    reached = {source}
    for node in graph.calls():
        if reached.intersection(node.all_input_nodes):
            if node in dependence.tokens:
                if any(n in reached and is_tensor(n) and val(n).is_floating_point() for n in node.all_input_nodes):
                    return True
            else:
                reached.add(node)
    return False


def _counting_aranges(graph: Graph) -> list[fx.Node]:
    """The aranges of symbolic length whose floats meet the tokens: all of them have to be bound."""
    _, lengths = call_sizes(graph)
    found = [
        node
        for node in graph.calls()
        if is_call(node, *ARANGES) and not isinstance(val(node).shape[0], int) and _meets_tokens(graph, node)
    ]
    for node in found:
        if str(val(node).shape[0]) not in lengths or node.args[:-1] not in ((), (0,)):
            raise _refusal(node)
    return found


def _bind(graph: Graph, arange: fx.Node, positions: fx.Node) -> None:
    """Let `positions` [B,T] stand for `arange` [T]: what is made of it has one row per sequence, in front.

    Everything that is made of it is evaluated again, up to where it meets the tokens: there no shape may change.
    """
    with graph.fx.inserting_before(arange):
        bound = graph.fx.call_function(
            aten.alias.default, (positions,)
        )  # a node of its own: positions have other readers
    bound.meta["val"] = val(positions)
    rows = {bound: arange.meta["val"]}  # what the values were, for all sequences at once
    arange.replace_all_uses_with(bound)
    graph.fx.erase_node(arange)
    dependence = find_dependence(graph, ("tokens",), ("positions",))
    for node in list(graph.calls()):
        if rows.keys().isdisjoint(node.all_input_nodes) or not is_tensor_like(node):
            continue
        before, of_rows = node.meta["val"], node not in dependence.tokens
        try:
            if of_rows:
                _keep_rows(node, rows, positions)
            node.meta["val"] = example_of(node)
        except Exception as error:
            raise _refusal(node) from error
        if of_rows:
            rows[node] = before
        if _outranks(node, rows) or not _fits(
            before, node.meta["val"], str(val(positions).shape[0]) if of_rows else ""
        ):
            raise _refusal(node)
    for node in [n for n in rows if is_call(n, aten.alias.default)]:
        node.replace_all_uses_with(node.all_input_nodes[0])
        graph.fx.erase_node(node)


def _fits(before: Any, now: Any, batch: str) -> bool:
    """Has a value kept its shape, or, if it is made of positions, rows in front: [T,..] or [1,T,..] -> [B,T,..]?"""
    if not isinstance(now, Tensor):
        return all(_fits(a, b, batch) for a, b in zip(before, now, strict=True))
    was, is_ = ([str(size) for size in x.shape] for x in (before, now))
    if not batch:
        return was == is_
    return is_ == [batch, *was] or (was[:1] in (["1"], [batch]) and is_ == [batch, *was[1:]])


def _outranks(node: fx.Node, rows: dict[fx.Node, Any]) -> bool:
    """Has another argument more dimensions, so that rows would line up with something else?"""
    made = [val(n).dim() for n in node.all_input_nodes if n in rows and is_tensor(n)]
    others = [val(n).dim() for n in node.all_input_nodes if n not in rows and is_tensor(n)]
    return bool(made) and max(others, default=0) > max(made)


def _keep_rows(node: fx.Node, rows: dict[fx.Node, Any], positions: fx.Node) -> None:
    """Let an operator that names dimensions or sizes mean the same ones now that rows stand in front."""
    source = node.all_input_nodes[0]
    if source not in rows or not is_tensor(source):
        return
    before = rows[source]
    if val(source).dim() > before.dim():  # [T,..] -> [B,T,..]
        _shift_dims(node, before.dim())
    if is_call(node, aten.reshape.default, aten.view.default):
        node.args = (source, _sizes_with_rows(node, before, positions))
    elif is_call(node, aten.repeat.default):
        repeats: Any = node.args[1]
        given = max(len(repeats) - before.dim(), 0) if val(source).dim() > before.dim() else 1
        node.args = (source, [1, *repeats[given:]])  # rows are there, whatever was repeated to make them


def _shift_dims(node: fx.Node, rank: int) -> None:
    """Add one to the dimensions that the operator names from the front; unsqueeze(0) makes the rows that are there."""
    assert isinstance(node.target, OpOverload)
    if is_call(node, aten.unsqueeze.default):
        dim: Any = node.args[1]
        node.args = (node.args[0], dim % (rank + 1))
        if node.args[1] == 0:
            node.target, node.args = aten.alias.default, node.args[:1]
            return
    args = list(node.args)
    for i, arg in enumerate(node.target._schema.arguments):
        if "dim" not in arg.name.split("_") and arg.name.rstrip("01s") != "dim":
            continue
        if i >= len(args) and arg.default_value is not None and arg.name not in node.kwargs:
            args.append(arg.default_value)
        named: Any = args[i]  # raises if it is not given in order, and the model is refused
        args[i] = [_shifted(d) for d in named] if isinstance(named, (list, tuple)) else _shifted(named)
    node.args = tuple(args)


def _shifted(dim: Any) -> Any:
    return dim + 1 if isinstance(dim, int) and dim >= 0 else dim


def _sizes_with_rows(node: fx.Node, before: Tensor, positions: fx.Node) -> list[Any]:
    sizes: Any = node.args[1]
    first = sizes[0] if sizes else None
    if isinstance(first, fx.Node) and str(first.meta["val"]) == str(val(positions).shape[0]):
        return list(sizes)
    if first == -1 and val(node.all_input_nodes[0]).dim() == before.dim():
        return list(sizes)
    with node.graph.inserting_before(node):
        batch = node.graph.call_function(aten.sym_size.int, (positions, 0))
    batch.meta["val"] = val(positions).shape[0]
    return [batch, *(sizes[1:] if first == 1 else sizes)]


def _refusal(node: fx.Node) -> Refusal:
    return Refusal(
        "POSITIONS",
        "the model counts positions itself, in a way that cannot take one row of positions per sequence",
        where=f"{node.meta.get('source', '')} {node.target}".strip(),
        fix="Give the module's forward a `position_ids` argument [B, T] in addition to `input_ids`.",
    )
