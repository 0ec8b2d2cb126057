"""A residual sum and the RMS norm of it, as one kernel."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from sleepc.backends.onnx.emit import MICROSOFT


def join_skips(graph: ir.Graph) -> int:
    """Make every x + y [B, T, d] whose norm is taken, and the norm, one kernel, in graphs inside as well; how many."""
    count = 0
    for norm in list(graph):
        inner = [a.as_graph() for a in norm.attributes.values() if a.type == ir.AttributeType.GRAPH]
        count += sum(join_skips(body) for body in inner)
        if norm.op_type != "RMSNormalization":
            continue
        total, scale = norm.inputs
        add = total.producer() if total is not None else None
        known = total is not None and scale is not None and scale.producer() is None
        if not known or add is None or add.op_type != "Add" or not _alike(add.inputs):
            continue
        node = ir.node(
            "SkipSimplifiedLayerNormalization",
            [*add.inputs, scale],
            {"epsilon": norm.attributes["epsilon"].as_float()},
            domain=MICROSOFT,
            num_outputs=4,
            name=norm.name,
        )
        graph.insert_before(add, node)
        for old, new in ((norm.outputs[0], node.outputs[0]), (total, node.outputs[3])):
            assert old is not None
            new.name, new.shape, new.type = old.name, old.shape, old.type
            old.name = None
            ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        for i in (1, 2):
            node.outputs[i].name = ""
        graph.remove([norm, add], safe=True)
        count += 1
    return count


def _alike(values: Sequence[ir.Value | None]) -> bool:
    """Two values of the same shape [B, T, d], known."""
    shapes = [v.shape for v in values if v is not None]
    return len(shapes) == 2 and None not in shapes and shapes[0] == shapes[1] and len(shapes[0]) == 3  # type: ignore[arg-type]
