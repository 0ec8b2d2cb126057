"""What a value depends on: the tokens, the positions, or neither. Found from data flow, never from names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from sleepc.ir.graph import Graph, is_call
from sleepc.passes.values import val

aten = torch.ops.aten
# Operators that read a tensor's shape or dtype only: their result does not depend on its values.
SHAPE_ONLY = (
    aten.sym_size.int,
    aten.new_ones.default,
    aten.new_zeros.default,
    aten.new_full.default,
    aten.new_empty.default,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.full_like.default,
    aten.empty_like.default,
)
ARANGES = (aten.arange.default, aten.arange.start, aten.arange.start_step)


@dataclass(frozen=True)
class Dependence:
    """`tokens`: nodes whose values depend on the tokens. `positions`: nodes that depend on positions or an arange over
    sizes, but not on tokens.
    """

    tokens: frozenset[fx.Node]
    positions: frozenset[fx.Node]


def find_dependence(graph: Graph, token_ports: tuple[str, ...], position_ports: tuple[str, ...]) -> Dependence:
    """Follow the values of the given input ports through the graph. Int sizes belong to neither."""
    tokens: set[fx.Node] = set()
    positions: set[fx.Node] = set()
    for node in graph.fx.nodes:
        if node.op == "placeholder":
            name = node.meta["port"].name
            if name in token_ports:
                tokens.add(node)
            elif name in position_ports:
                positions.add(node)
        elif node.op == "call_function" and not is_call(node, *SHAPE_ONLY):
            inputs = node.all_input_nodes
            if any(n in tokens for n in inputs):
                tokens.add(node)
            elif any(n in positions for n in inputs) or is_call(node, *ARANGES):
                positions.add(node)
    return Dependence(frozenset(tokens), frozenset(positions))


def learned_positions(graph: Graph) -> int | None:
    """Rows of the smallest table that is indexed by positions, or None where positions are not looked up."""
    dependence = find_dependence(graph, ("tokens",), ("positions",))
    rows = [_rows(node) for node in graph.calls() if _looks_up(node, dependence.positions)]
    return min((r for r in rows if isinstance(r, int)), default=None)


def _looks_up(node: fx.Node, positions: frozenset[fx.Node]) -> bool:
    if is_call(node, aten.embedding.default):
        return node.args[1] in positions
    return is_call(node, aten.gather.default, aten.index_select.default) and node.args[2] in positions


def _rows(node: fx.Node) -> Any:
    """The size that an index may not pass; not an int where it is a size of the call."""
    table, dim = node.args[:2]
    return val(table).shape[0 if is_call(node, aten.embedding.default) else dim]  # type: ignore[arg-type,index]
