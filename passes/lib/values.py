"""What torch.export knows of a node's value: used on flat graphs, before types are inferred per block."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from sleepc.ir.exported import example_of
from sleepc.ir.graph import Graph, is_call
from sleepc.passes.lib.emit import Emit, aten

SIZE_ARITHMETIC = (operator.add, operator.mul, operator.sub, operator.floordiv, operator.neg)


def needed_for(target: fx.Node) -> list[fx.Node]:
    """The nodes that `target` is computed from, and itself, in order."""
    needed = {target}
    for node in reversed(target.graph.nodes):
        if node in needed:
            needed.update(node.all_input_nodes)
    return [node for node in target.graph.nodes if node in needed]


def val(node: fx.Node) -> torch.Tensor:
    """The example value (a FakeTensor) of a tensor node of an exported graph."""
    value = node.meta["val"]
    assert isinstance(value, torch.Tensor), node
    return value


def is_tensor(node: fx.Node) -> bool:
    """Has the node a tensor value?"""
    return isinstance(node.meta.get("val"), torch.Tensor)


def shape_text(node: fx.Node) -> tuple[str, ...]:
    """The shape as text: comparing symbolic sizes with == would install guards (traps)."""
    return tuple(str(size) for size in val(node).shape)


def call_sizes(graph: Graph) -> tuple[set[str], set[str]]:
    """What torch calls batch and length, as text: both inputs have them, under names that torch knows to be equal."""
    shapes = [val(port).shape for port in graph.ports("input").values()]
    return {str(shape[0]) for shape in shapes}, {str(shape[1]) for shape in shapes}


def same_type(a: fx.Node, b: fx.Node) -> bool:
    """Have both the same dtype and shape, compared as text?"""
    return is_tensor(a) and is_tensor(b) and val(a).dtype == val(b).dtype and shape_text(a) == shape_text(b)


def is_size(node: fx.Node) -> bool:
    """Is the node's value a size (an int), not a tensor?"""
    return is_call(node, torch.ops.aten.sym_size.int, *SIZE_ARITHMETIC)


class FlatEmit(Emit):
    """Emit for flat graphs: notes torch's example value of what it writes."""

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """One operator call."""
        node = super().call(target, *args, **kwargs)
        node.meta["val"] = example_of(node)
        return node

    def unfold(self, value: fx.Node, heads: int) -> fx.Node:
        """[B*heads,..] -> [B,heads,..]; what has no batch, [heads,..] or [1,..], gets one of 1."""
        if isinstance(val(value).shape[0], int):
            return self.unsqueeze(value, 0)
        return self.call(aten.unflatten.int, value, 0, [-1, heads])
