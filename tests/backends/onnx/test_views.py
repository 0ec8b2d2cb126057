"""Shapes that change in place: transposes of sizes of 1 become reshapes, reshapes in a row one; values stay."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from sleepc.backends.onnx.emit import Emitter
from sleepc.backends.onnx.lower import IR_VERSION, OPSETS, drop_unread
from sleepc.backends.onnx.views import keep_in_place
from sleepc.backends.onnx.weights import Weights

Change = tuple[str, Any]  # "reshape" to dimensions, "transpose" in an order
CASES: dict[str, tuple[list[Any], list[Change], dict[str, int]]] = {
    "heads of one token": (["B", 1, 12], [("reshape", ["B", 1, 3, 4]), ("transpose", (0, 2, 1, 3))], {"Reshape": 1}),
    "and back": (
        ["B", 3, 1, 4],
        [("transpose", (0, 2, 1, 3)), ("reshape", ["B", 1, 12]), ("reshape", ["B", 12])],
        {"Reshape": 1},
    ),
    "heads of many": (
        ["B", "T", 12],
        [("reshape", ["B", "T", 3, 4]), ("transpose", (0, 2, 1, 3))],
        {"Reshape": 1, "Transpose": 1},
    ),
    "two sizes are not known": (["B", "T", 1], [("transpose", (2, 0, 1))], {"Transpose": 1}),
    "one is": (["B", 5, 1], [("transpose", (0, 2, 1))], {"Reshape": 1}),
    "larger sizes change places": (["B", 1, 5, 4], [("transpose", (0, 1, 3, 2))], {"Transpose": 1}),
}


def graph(e: Emitter, dims: list[Any], changes: list[Change]) -> ir.Graph:
    x = ir.Value(name="x", shape=ir.Shape(dims), type=ir.TensorType(ir.DataType.FLOAT))
    value = x
    for what, target in changes:
        assert value.shape is not None
        value = e.transpose(value, target) if what == "transpose" else e.reshape(value, list(value.shape), target)  # type: ignore[arg-type]
    value.name = "y"
    return ir.Graph([x], [value], nodes=e.nodes, opset_imports=OPSETS["ort"], name="g")


def run(e: Emitter, graph: ir.Graph, sizes: dict[str, int], path: Path) -> Any:
    for value in e.initializers.values():
        graph.register_initializer(value)
    ir.save(ir.Model(graph, ir_version=IR_VERSION), path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    shape = [sizes.get(d, d) for d in session.get_inputs()[0].shape]
    return session.run(None, {"x": np.arange(np.prod(shape), dtype=np.float32).reshape(shape)})[0]


@pytest.mark.parametrize("name", CASES)
def test_values_stay_where_they_are(name: str, tmp_path: Path) -> None:
    dims, changes, nodes = CASES[name]
    plain, kept = (Emitter(Weights({}, {}, tmp_path)) for _ in range(2))
    before, after = graph(plain, dims, changes), graph(kept, dims, changes)
    keep_in_place(kept, after)
    drop_unread(after)
    assert Counter(node.op_type for node in after) == nodes
    for sizes in ({"B": 1, "T": 1}, {"B": 2, "T": 3}):
        expected = run(plain, before, sizes, tmp_path / "before.onnx")
        np.testing.assert_array_equal(run(kept, after, sizes, tmp_path / "after.onnx"), expected)
