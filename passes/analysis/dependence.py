"""What a value depends on: the tokens, the positions, or neither. Found from data flow, never from names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from sleepc.ir.graph import Graph, is_call
from sleepc.ir.interp import value_of
from sleepc.passes.lib.emit import aten
from sleepc.passes.lib.values import needed_for, val

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
    """How many positions the smallest table that is indexed by positions has rows for, or None if positions are not
    looked up.

    What was looked up and then indexes another table (token types that stand in a buffer) is not a position any more.
    """
    dependence = find_dependence(graph, ("tokens",), ("positions",))
    bounds: list[int | None] = []
    found: set[fx.Node] = set()
    for node in graph.calls():
        index = _index(node)
        if index in dependence.positions and index not in found:
            bounds.append(_bound(node))
        if index in dependence.positions or found.intersection(node.all_input_nodes):
            found.add(node)
    return min((b for b in bounds if b is not None), default=None)


def _bound(lookup: fx.Node) -> int | None:
    """The first position whose row is not in the table: a model may add to positions before it looks them up."""
    rows, index = _rows(lookup), _index(lookup)
    if not isinstance(rows, int):
        return None
    asked = _positions_of(index, rows + 1)
    if asked is None or asked.shape[-1] != rows + 1:
        return rows
    outside = ((asked < 0) | (asked >= rows)).reshape(-1, rows + 1).any(0).nonzero()
    return int(outside[0]) if len(outside) else None


def _positions_of(target: fx.Node, length: int) -> Tensor | None:
    """The value of `target` for one row of positions 0 to length - 1; None if it needs the model's tensors."""
    if any(n.op == "placeholder" and n.meta["port"].kind != "input" for n in needed_for(target)):
        return None
    row = torch.arange(length)[None]  # of the tokens only the shape is asked for
    found: Tensor = value_of(target, lambda n: row if n.op == "placeholder" else NotImplemented)
    return found


def _index(node: fx.Node) -> Any:
    """What a look-up in a table asks for; None for other calls."""
    if is_call(node, aten.embedding.default):
        return node.args[1]
    return node.args[2] if is_call(node, aten.gather.default, aten.index_select.default) else None


def _rows(node: fx.Node) -> Any:
    """The size that an index may not pass; not an int if it is a size of the call."""
    table, dim = node.args[:2]
    return val(table).shape[0 if is_call(node, aten.embedding.default) else dim]  # type: ignore[arg-type,index]
