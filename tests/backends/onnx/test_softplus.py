"""Softplus keeps its small values in a runtime that computes log(1 + exp(x)) as it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from sleepc.backends.onnx.emit import Emitter
from sleepc.backends.onnx.lower import IR_VERSION, OPSETS
from sleepc.backends.onnx.softplus import keep_small_softplus
from sleepc.backends.onnx.weights import Weights

X = np.concatenate([np.linspace(-80, 40, 961), np.linspace(-4, -3, 101)])


def softplus_model(kind: ir.DataType, tmp_path: Path, *, typed: bool = True) -> onnx.ModelProto:
    """x [N] -> softplus(x) [N], which a node reads and the graph returns."""
    e = Emitter(Weights({}, {}, tmp_path))
    x = ir.Value(name="x", shape=ir.Shape(["N"]), type=ir.TensorType(kind))
    y = e("Softplus", x)
    y.name = "y"
    if typed:
        y.type = x.type
    twice = e("Add", y, y)
    twice.name, twice.type, twice.shape = "twice", x.type, x.shape
    graph = ir.Graph([x], [y, twice], nodes=e.nodes, opset_imports=OPSETS["portable"], name="softplus")
    assert keep_small_softplus(e, graph) == 1
    y, other = graph.outputs
    y.type, y.shape = x.type, x.shape
    assert (y.name, other.name) == ("y", "twice")
    for value in e.initializers.values():
        graph.register_initializer(value)
    model = ir.to_proto(ir.Model(graph, ir_version=IR_VERSION))
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model: onnx.ModelProto, x: np.ndarray) -> tuple[Any, ...]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return tuple(session.run(None, {"x": x}))


@pytest.mark.parametrize(("kind", "most"), [(ir.DataType.FLOAT, 3e-7), (ir.DataType.FLOAT16, 2e-3)])
@pytest.mark.parametrize("typed", [True, False])
def test_equal_to_float64(kind: ir.DataType, most: float, typed: bool, tmp_path: Path) -> None:
    x = X.astype(kind.numpy())
    x = x[x > -9] if kind is ir.DataType.FLOAT16 else x  # below that its numbers are no longer normal
    y, twice = run(softplus_model(kind, tmp_path, typed=typed), x)
    want = np.logaddexp(0, x.astype(np.float64))
    assert (abs(y.astype(np.float64) - want) / want).max() < most
    assert np.array_equal(twice, y + y)


def test_values_are_kept_where_a_runtime_computes_what_is_written(tmp_path: Path) -> None:
    """Softplus spelled out as Log(1 + Exp(x)) is what such a runtime computes: the model keeps its small values."""
    model = softplus_model(ir.DataType.FLOAT, tmp_path)
    nodes = list(model.graph.node)
    place = next(i for i, node in enumerate(nodes) if node.op_type == "Softplus")
    one = onnx.numpy_helper.from_array(np.array(1, np.float32), "one")
    model.graph.initializer.append(one)
    name, (source,), (result,) = nodes[place].name, nodes[place].input, nodes[place].output
    nodes[place : place + 1] = [
        onnx.helper.make_node("Exp", [source], [f"{name}.exp"]),
        onnx.helper.make_node("Add", [f"{name}.exp", "one"], [f"{name}.sum"]),
        onnx.helper.make_node("Log", [f"{name}.sum"], [result]),
    ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    x = np.linspace(-80, 40, 961, dtype=np.float32)
    with np.errstate(divide="ignore"):
        plain = np.log(1 + np.exp(x))
    want = np.logaddexp(0, x.astype(np.float64))
    assert (abs(plain - want) / want).max() == 1, "the fault is there without the mend"
    assert (abs(run(model, x)[0] - want) / want).max() < 1e-5
