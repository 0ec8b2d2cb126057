"""Shapes that change without a number being moved: fewer kernels for one token, whose time is mostly their number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from sleepc.backends.onnx.emit import Emitter


def keep_in_place(e: Emitter, graph: ir.Graph) -> int:
    """Make a Transpose that moves nothing but sizes of 1 a Reshape, and Reshapes in a row one, in graphs inside as
    well; how many. Who read what was in between still does.
    """
    count = 0
    for node in list(graph):
        inner = [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
        count += sum(keep_in_place(e, body) for body in inner)
        x = _origin(node)
        if x is None or (x is node.inputs[0] and node.op_type == "Reshape"):
            continue
        assert x.shape is not None
        assert node.outputs[0].shape is not None
        target = _target(list(x.shape), list(node.outputs[0].shape))
        if target is None:
            continue
        old = node.outputs[0]
        new = ir.node("Reshape", [x, e.ints(*target)], name=node.name)
        value = new.outputs[0]
        value.name, value.shape, value.type = old.name, old.shape, old.type
        old.name = None
        graph.insert_before(node, new)
        ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        count += 1
    return count


def _origin(node: ir.Node | None) -> ir.Value | None:
    """What the values were before changes of shape alone; None if the node is not one of these."""
    found = None
    while node is not None and _is_view(node):
        found = node.inputs[0]
        node = found.producer() if found is not None else None
    return found


def _is_view(node: ir.Node) -> bool:
    if node.domain or node.op_type not in ("Reshape", "Transpose"):
        return False
    x = node.inputs[0]
    if x is None or x.shape is None or node.outputs[0].shape is None:
        return False
    if node.op_type == "Reshape":
        return True
    moved = [i for i in node.attributes["perm"].as_ints() if x.shape[i] != 1]
    return moved == sorted(moved)


def _target(before: Sequence[Any], after: Sequence[Any]) -> list[int] | None:
    """What a Reshape is told: 0 for a size that stays where it is, -1 for an unknown one; None if there are more
    of these.
    """
    target = [0 if i < len(before) and not isinstance(d, int) and before[i] == d else d for i, d in enumerate(after)]
    unknown = [i for i, d in enumerate(target) if not isinstance(d, int)]
    if len(unknown) > 1 or (unknown and 0 in after):
        return None
    return [d if isinstance(d, int) else -1 for d in target]
