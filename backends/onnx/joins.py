"""Linear maps of one value, as one product: fewer and larger calls of kernels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
from torch import fx

from sleepc.backends.onnx.emit import Emitter
from sleepc.backends.onnx.weights import Weight
from sleepc.ir.graph import Graph, is_call
from sleepc.ir.levels import aten
from sleepc.passes.lib.match import through


@dataclass
class Join:
    """Linear maps whose weights lie below each other in one weight; `parts` are their results once they are there."""

    members: list[fx.Node]
    keys: tuple[str, ...]
    bias_keys: tuple[str, ...]
    parts: dict[str, list[ir.Value]] = field(default_factory=dict)  # "flat", "heads"

    @property
    def sizes(self) -> list[int]:
        """Outputs of each map."""
        return [int(node.args[1].meta["type"].dims[0]) for node in self.members]  # type: ignore[union-attr]

    def head_width(self) -> int | None:
        """D, where every map is only read as heads, [B, T, H*D] -> [B, T, H, D] -> [B, H, T, D]."""
        widths = {_head_width(node) for node in self.members}
        return widths.pop() if len(widths) == 1 else None


def find_joins(graph: Graph, values: Mapping[fx.Node, Any], e: Emitter) -> dict[fx.Node, Join]:
    """The linear maps of a graph that can be joined, each with its group.

    They read the same value; their weights are the source's, or all new; all have a bias, or none.
    """
    groups: dict[tuple[Any, ...], list[fx.Node]] = {}
    for node in graph.calls():
        if not is_call(node, aten.linear.default):
            continue
        weights: list[Any] = [values.get(a) for a in node.args[1:] if a is not None]  # type: ignore[arg-type]
        if all(isinstance(w, Weight) and w.key not in e.weights.shared for w in weights):
            groups.setdefault((through(node.args[0]), e.weights.is_new(weights[0].key), len(weights)), []).append(node)
    joins: dict[fx.Node, Join] = {}
    for members in groups.values():
        keys = tuple(values[node.args[1]].key for node in members)  # type: ignore[index]
        biases = [node.args[2] for node in members if len(node.args) > 2 and node.args[2] is not None]
        if len(members) > 1 and len(set(keys)) == len(keys):
            join = Join(members, keys, tuple(values[bias].key for bias in biases))  # type: ignore[index]
            joins.update(dict.fromkeys(members, join))
    return joins


def _head_width(linear: fx.Node) -> int | None:
    (reshaped, *more) = linear.users
    if more or not is_call(reshaped, aten.reshape.default, aten.view.default):
        return None
    dims = reshaped.meta["type"].dims
    if len(dims) != 4 or dims[:2] != linear.meta["type"].dims[:2] or not all(isinstance(d, int) for d in dims[2:]):
        return None
    (swapped, *more) = reshaped.users
    same = not more and is_call(swapped, aten.transpose.int) and set(swapped.args[1:]) in ({1, 2}, {-3, -2})
    return int(dims[3]) if same else None
