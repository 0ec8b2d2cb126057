"""Numbers of 8 bits by groups with a scale each become floats in one kernel, to the bit; nothing else does."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from sleepc.backends.onnx.dequantise import join_dequantised
from sleepc.backends.onnx.emit import Emitter
from sleepc.backends.onnx.lower import IR_VERSION, OPSETS, drop_unread
from sleepc.backends.onnx.views import keep_in_place
from sleepc.backends.onnx.weights import Weights

INT8, INT16, FLOAT, DOUBLE = (getattr(ir.DataType, name) for name in ("INT8", "INT16", "FLOAT", "DOUBLE"))
SIZES = {"B": 2}


def value(name: str, dims: list[Any], kind: ir.DataType) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(dims), type=ir.TensorType(kind))


def graph(e: Emitter, dims: list[Any], scales: list[Any], stored: ir.DataType, floats: ir.DataType) -> ir.Graph:
    """n [B,S,D] and scales [B,S,G] -> float(n) by groups · scales, [B,S,D], as a lowered program has it."""
    *places, width = dims
    groups = [*places, *scales[len(places) :]] if len(scales) == len(dims) else [*places, 1]
    n, scale = value("n", dims, stored), value("scale", scales, floats)
    x = e.cast(n, torch.float32 if floats == FLOAT else torch.float64)
    x.shape, x.type = ir.Shape(dims), ir.TensorType(floats)
    x = e.reshape(x, dims, [*groups, width // groups[-1]])
    by = e.reshape(scale, scales, [*groups, 1])
    product = e("Mul", x, by)
    product.shape, product.type = x.shape, x.type
    y = e.reshape(product, [*groups, width // groups[-1]], dims)
    y.name = "y"
    return ir.Graph([n, scale], [y], nodes=e.nodes, opset_imports=OPSETS["ort"], name="g")


def run(e: Emitter, graph: ir.Graph, path: Path) -> Any:
    for each in e.initializers.values():
        graph.register_initializer(each)
    ir.save(ir.Model(graph, ir_version=IR_VERSION), path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    rng, feed = np.random.default_rng(0), {}
    for x in session.get_inputs():
        shape = [SIZES.get(d, d) for d in x.shape]
        whole = x.type in ("tensor(int8)", "tensor(int16)")
        dtype = {"tensor(int8)": np.int8, "tensor(int16)": np.int16, "tensor(double)": np.float64}.get(
            x.type, np.float32
        )
        feed[x.name] = (rng.integers(-127, 128, shape) if whole else rng.standard_normal(shape)).astype(dtype)
    return session.run(None, feed)[0], feed


@pytest.mark.parametrize("batch", ["B", 1])
@pytest.mark.parametrize("groups", [2, 3])
def test_values_are_the_same_to_the_bit(tmp_path: Path, batch: int | str, groups: int) -> None:
    found = []
    for joins in (False, True):
        e = Emitter(Weights({}, {}, tmp_path))
        made = graph(e, [batch, 5, 12], [batch, 5, groups], INT8, FLOAT)
        assert not joins or join_dequantised(e, made) == 1
        keep_in_place(e, made)
        drop_unread(made)
        found.append((*run(e, made, tmp_path / f"{joins}.onnx"), Counter(node.op_type for node in made)))
    (plain, feed, before), (joined, _, after) = found
    np.testing.assert_array_equal(plain, joined)
    numbers = feed["n"].astype(np.float64).reshape(*feed["scale"].shape, -1)
    wanted = (numbers * feed["scale"].astype(np.float64)[..., None]).reshape(feed["n"].shape)
    np.testing.assert_allclose(joined, wanted, rtol=1e-7)
    assert before == {"Cast": 1, "Reshape": 3, "Mul": 1}
    assert after == {"Reshape": 3, "DequantizeLinear": 1}


@pytest.mark.parametrize(
    ("stored", "floats", "dims", "scales"),
    [
        pytest.param(INT16, FLOAT, ["B", 5, 12], ["B", 5, 2], id="of 16 bits"),
        pytest.param(INT8, DOUBLE, ["B", 5, 12], ["B", 5, 2], id="in float64"),
        pytest.param(INT8, FLOAT, ["B", "S", 12], ["B", "S", 2], id="two sizes are not known"),
    ],
)
def test_others_stay(stored: Any, floats: Any, dims: list[Any], scales: list[Any], tmp_path: Path) -> None:
    e = Emitter(Weights({}, {}, tmp_path))
    e.sizes |= {name: e.ints(1) for name in ("B", "S")}
    assert join_dequantised(e, graph(e, dims, scales, stored, floats)) == 0


def test_one_scale_for_all_groups_stays(tmp_path: Path) -> None:
    e = Emitter(Weights({}, {}, tmp_path))
    made = graph(e, ["B", 5, 12], ["B", 5, 2], INT8, FLOAT)
    (mul,) = (node for node in made if node.op_type == "Mul")
    mul.replace_input_with(1, value("one", [1], FLOAT))
    assert join_dequantised(e, made) == 0
