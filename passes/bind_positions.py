"""A model that counts positions itself (arange over its length) gets them from outside instead, one row each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from sleepc.errors import Refusal
from sleepc.ir.graph import Graph, is_call
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.base import Effect, Pass
from sleepc.passes.dependence import ARANGES, find_dependence
from sleepc.passes.values import call_sizes, evaluate, is_tensor, val

aten = torch.ops.aten


@dataclass(frozen=True)
class BindPositions(Pass):
    """Replace each arange over the tokens of a call, where floats made from it meet the tokens, by `positions` [B,T].

    Masks are evaluated before, so that no arange is left that only makes a mask. Raises Refusal(POSITIONS) where an
    arange does not count from 0 over the call's tokens, or where the model's operations on it do not work with one row
    of positions per sequence.
    """

    name: ClassVar[str] = "bind-positions"
    effect: ClassVar[Effect] = "EXACT"

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
    for user in list(arange.users):
        if is_call(user, aten.unsqueeze.default) and user.args[1] in (0, -2):
            user.replace_all_uses_with(positions)
            graph.fx.erase_node(user)
    arange.replace_all_uses_with(positions)
    graph.fx.erase_node(arange)
    _recompute_values(graph, positions)


def _recompute_values(graph: Graph, source: fx.Node) -> None:
    """Run what depends on `source` again on example values; nothing that depends on the tokens may change its shape."""
    dependence = find_dependence(graph, ("tokens",), ("positions",))
    rows = {source}
    for node in graph.calls():
        if not is_tensor(node):
            continue
        if node in dependence.positions and rows.intersection(node.all_input_nodes):
            rows.add(node)
            _keep_rows(node, source)
        before = str(val(node).shape)
        try:
            node.meta["val"] = evaluate(node, lambda n: n.meta["val"])
            fits = node not in dependence.tokens or str(val(node).shape) == before
        except Exception as error:
            raise _refusal(node) from error
        if not fits:
            raise _refusal(node)


def _keep_rows(node: fx.Node, source: fx.Node) -> None:
    """What was one row of positions [T], reshaped to [1,T,..], is now [B,T] and becomes [B,T,..]."""
    if not is_call(node, aten.reshape.default, aten.view.default):
        return
    sizes: Any = node.args[1]
    of_rows = str(val(node.all_input_nodes[0]).shape[0]) == str(val(source).shape[0])
    if of_rows and sizes[0] == 1 and -1 not in sizes:
        node.args = (node.args[0], [-1, *sizes[1:]])


def _refusal(node: fx.Node) -> Refusal:
    return Refusal(
        "POSITIONS",
        "the model counts positions itself, in a way that cannot take one row of positions per sequence",
        where=f"{node.meta.get('source', '')} {node.target}".strip(),
        fix="Give the module's forward a `position_ids` argument [B, T] beside `input_ids`.",
    )
