"""A model that counts positions itself (arange over its length) gets them from outside instead, one row each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from sleepc.errors import Refusal
from sleepc.ir.graph import Graph, is_call
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.base import Effect, Pass
from sleepc.passes.dependence import ARANGES, find_dependence
from sleepc.passes.values import evaluate, is_tensor, val

aten = torch.ops.aten


@dataclass(frozen=True)
class BindPositions(Pass):
    """Replace each arange over the tokens of a call, where floats made from it meet the tokens, by the input
    `positions` [B,T].

    An arange that only makes a mask stays: masks are evaluated later. Also notes how many positions a learned table
    has.
    Raises Refusal(POSITIONS) where the model's operations on the arange do not work with one row of positions per
    sequence.
    """

    name: ClassVar[str] = "bind-positions"
    effect: ClassVar[Effect] = "EXACT"

    def run(self, program: ProgramGraphs) -> int:
        """The number of aranges replaced."""
        graph = program.embed
        ports = graph.ports("input")
        tokens, positions = ports["tokens"], ports["positions"]
        bound = [] if _meets_tokens(graph, positions) else _counting_aranges(graph, tokens)
        for arange in bound:
            _bind(graph, arange, positions)
        limit = learned_positions(graph)
        if limit is not None:
            program.max_positions = min(limit, program.max_positions or limit)
        return len(bound)


def learned_positions(graph: Graph) -> int | None:
    """Rows of the smallest table that is indexed by positions, or None where positions are not looked up."""
    dependence = find_dependence(graph, ("tokens",), ("positions",))
    rows = [
        int(val(table).shape[0])
        for node in graph.calls()
        if is_call(node, aten.embedding.default) and node.args[1] in dependence.positions
        for table in node.all_input_nodes[:1]
    ]
    return min(rows, default=None)


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


def _counting_aranges(graph: Graph, tokens: fx.Node) -> list[fx.Node]:
    length = str(val(tokens).shape[1])
    return [
        node
        for node in graph.calls()
        if is_call(node, *ARANGES)
        and str(val(node).shape[0]) == length
        and node.args[:-1] in ((), (0,))
        and _meets_tokens(graph, node)
    ]


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
    for node in graph.calls():
        if not is_tensor(node):
            continue
        before = str(val(node).shape)
        try:
            node.meta["val"] = evaluate(node, lambda n: n.meta["val"])
            fits = node not in dependence.tokens or str(val(node).shape) == before
        except Exception as error:
            raise _refusal(node) from error
        if not fits:
            raise _refusal(node)


def _refusal(node: fx.Node) -> Refusal:
    return Refusal(
        "POSITIONS",
        "the model counts positions itself, in a way that cannot take one row of positions per sequence",
        where=f"{node.meta.get('source', '')} {node.target}".strip(),
        fix="Give the module's forward a `position_ids` argument [B, T] beside `input_ids`.",
    )
