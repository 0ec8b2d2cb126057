"""Steps that are taken once for all layers give what each layer's gives, and only where nothing else needs those."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from sleepc.backends.onnx.abreast import Abreast
from sleepc.backends.onnx.emit import Emitter
from sleepc.backends.onnx.lower import IR_VERSION, OPSETS, drop_unread
from sleepc.backends.onnx.weights import Weights

LAYERS = 3
Step = Callable[[Emitter, ir.Value, int], ir.Value]


def constant(e: Emitter, *dims: int, seed: int) -> ir.Value:
    return e.const(np.random.default_rng(seed).normal(size=dims), np.float32)


def gate(e: Emitter, x: ir.Value, layer: int) -> ir.Value:
    """[B,T,4] -> [B,4,T]."""
    rate = e("Exp", constant(e, 4, seed=layer))
    rate.shape = ir.Shape([4])
    return e.transpose(e("Mul", e("Softplus", x), rate), (0, 2, 1))


def mapped(e: Emitter, x: ir.Value, layer: int) -> ir.Value:
    """[B,2,T,4] -> the same, by a matrix for each head and a norm."""
    product = e("MatMul", x, constant(e, 2, 4, 4, seed=layer))
    return e("RMSNormalization", product, constant(e, 4, seed=9), axis=-1, epsilon=1e-6)


def shared(e: Emitter, x: ir.Value, layer: int) -> ir.Value:
    """[B,T,4] -> the same, by numbers for all layers."""
    return e("Sigmoid", e("Add", x, constant(e, 1, seed=5)))


def along_the_norm(e: Emitter, x: ir.Value, layer: int) -> ir.Value:
    """[B,T,4] -> the same, by a norm over what is put side by side."""
    return e("RMSNormalization", x, constant(e, 4, seed=5), axis=-1, epsilon=1e-6)


def different(e: Emitter, x: ir.Value, layer: int) -> ir.Value:
    """[B,T,4] -> the same, by a function of each layer's own."""
    return e(("Sigmoid", "Tanh", "Relu")[layer], x)


CASES = {
    "gate": (gate, 3, 1, {"Concat": 2, "Exp": 1, "Softplus": 1, "Mul": 1, "Transpose": 1}),
    "map and norm": (mapped, 4, 1, {"Concat": 2, "MatMul": 1, "RMSNormalization": 1}),
    "shared numbers": (shared, 3, 2, {"Concat": 1, "Add": 1, "Sigmoid": 1}),
    "along the norm": (along_the_norm, 3, 2, {"Concat": 1, "RMSNormalization": LAYERS}),
    "different": (different, 3, 2, {"Concat": 1, "Sigmoid": 1, "Tanh": 1, "Relu": 1}),
}


def graph(e: Emitter, step: Step, rank: int, axis: int, *, joined: bool, read: bool) -> ir.Graph:
    dims: list[Any] = ["B", "T", 4] if rank == 3 else ["B", 2, "T", 4]
    inputs = [
        ir.Value(name=f"x{i}", shape=ir.Shape(dims), type=ir.TensorType(ir.DataType.FLOAT)) for i in range(LAYERS)
    ]
    values = [step(e, x, i) for i, x in enumerate(inputs)]
    results = [e("Neg", value) for value in values] if read else []
    whole = Abreast(e, [*results, *values]).join(values, axis, rank) if joined else e("Concat", *values, axis=axis)
    outputs = [whole, *results]
    for i, value in enumerate(outputs):
        value.name, value.type = f"y{i}", ir.TensorType(ir.DataType.FLOAT)
    made = ir.Graph(inputs, outputs, nodes=e.nodes, opset_imports=OPSETS["ort"], name="g")
    drop_unread(made)
    for value in e.initializers.values():
        made.register_initializer(value)
    return made


def run(graph: ir.Graph, path: Path) -> Any:
    ir.save(ir.Model(graph, ir_version=IR_VERSION), path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    sizes = {"B": 2, "T": 3}
    feeds = {
        x.name: random.normal(size=[sizes.get(d, d) for d in x.shape]).astype(np.float32) for x in session.get_inputs()
    }
    return session.run(None, feeds)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("read", [False, True])
def test_joined_steps_give_what_each_gives(name: str, read: bool, tmp_path: Path) -> None:
    step, rank, axis, _ = CASES[name]
    expected, found = (
        run(
            graph(Emitter(Weights({}, {}, tmp_path)), step, rank, axis, joined=joined, read=read),
            tmp_path / f"{joined}.onnx",
        )
        for joined in (False, True)
    )
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(b, a, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_steps_are_taken_once(name: str, tmp_path: Path) -> None:
    step, rank, axis, nodes = CASES[name]
    made = graph(Emitter(Weights({}, {}, tmp_path)), step, rank, axis, joined=True, read=False)
    assert Counter(node.op_type for node in made) == nodes


def test_what_others_read_is_not_computed_again(tmp_path: Path) -> None:
    made = graph(Emitter(Weights({}, {}, tmp_path)), mapped, 4, 1, joined=True, read=True)
    assert Counter(node.op_type for node in made)["MatMul"] == LAYERS
