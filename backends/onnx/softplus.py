"""log(1 + exp(x)) far below 0, where runtimes that compute it as it is written lose it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from sleepc.backends.onnx.emit import Emitter

BELOW = -3.5  # from here down four terms of the series are exact in float32: the fifth is below 2e-7 of their sum
SHORT = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def keep_small_softplus(e: Emitter, graph: ir.Graph) -> int:
    """Give every Softplus of float32 or float16 its series in exp(x) below BELOW, in graphs inside as well; how many.

    A memory's decay is a softplus. log(1 + exp(x)), rounded to float32 as it stands, is 0 from -17 on, so that a memory
    which decays slowly never does. ONNX Runtime is exact either way; OpenVINO and tract are not (docs/log.md).
    """
    count = 0
    for node in list(graph):
        inner = [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
        count += sum(keep_small_softplus(e, body) for body in inner)
        kind = _kind(node.outputs[0])
        if node.op_type != "Softplus" or node.domain or kind not in SHORT:
            continue
        _mend(e, graph, node, kind.numpy())
        count += 1
    return count


def _kind(value: ir.Value | None) -> ir.DataType | None:
    """The type of a value's numbers; that of what it was made of where nobody wrote it down."""
    while value is not None and value.dtype is None:
        producer = value.producer()
        value = producer.inputs[0] if producer is not None and producer.inputs else None
    return None if value is None else value.dtype


def _mend(e: Emitter, graph: ir.Graph, node: ir.Node, dtype: np.dtype[np.generic]) -> None:
    """y = softplus(x)  ->  where(x < BELOW, u (1 - u (1/2 - u (1/3 - u/4))), softplus(x)), u = exp(min(x, BELOW))."""
    x, high = node.inputs[0], node.outputs[0]
    made: list[ir.Node] = []

    def step(op: str, *inputs: ir.Value | None) -> ir.Value:
        made.append(ir.node(op, inputs, name=f"{node.name}.{op}.{len(made)}"))
        value = made[-1].outputs[0]
        value.name = made[-1].name
        return value

    u = step("Exp", step("Min", x, e.const(BELOW, dtype)))
    low = step("Mul", u, e.const(1 / 4, dtype))
    for term in (1 / 3, 1 / 2, 1.0):
        low = step("Mul", u, step("Sub", e.const(term, dtype), low))
    y = step("Where", step("Less", x, e.const(BELOW, dtype)), low, high)
    y.name, y.shape, y.type = high.name, high.shape, high.type
    high.name = f"{node.name}.high"
    where = made[-1]
    for reader, place in tuple(high.uses()):
        if reader is not where:
            reader.replace_input_with(place, y)
    for place, result in enumerate(graph.outputs):
        if result is high:
            graph.outputs[place] = y
    graph.insert_after(node, made)
