"""The files themselves: valid, typed, with shapes that hold, and no longer for longer windows."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import shape_inference

from sleepc.ir import dims
from tests.backends.onnx.exports import exported
from tests.families import VOCAB, WINDOW

CASES = [
    ("llama", "parallel-hard", "ort"),
    ("llama", "recurrent-insert", "portable"),
    ("gpt2", "replace-channel", "ort"),
    ("gpt2", "layer-by-layer", "portable"),
    ("gemma2", "recurrent-replace", "ort"),
    ("gemma2", "gated-channel", "portable"),
]
SIZES = {"B": 2, "T": 5, "M": 1}
DTYPES = {onnx.TensorProto.FLOAT: np.float32, onnx.TensorProto.INT64: np.int64, onnx.TensorProto.BOOL: np.bool_}


def files(name: str, recipe: str, ops: str, window: int = WINDOW) -> list[Path]:
    return sorted(exported(name, recipe, ops, window)[0].glob("*.onnx"))


def shape_of(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


SLOW = [pytest.param(*case, marks=pytest.mark.slow) for case in CASES[:2] + CASES[5:]]


@pytest.mark.parametrize(("name", "recipe", "ops"), [*SLOW, *CASES[2:5]])
def test_files_are_valid_and_say_their_shapes(name: str, recipe: str, ops: str) -> None:
    for path in files(name, recipe, ops):
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(path, load_external_data=False)
        inferred = shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
        for value in (*model.graph.input, *model.graph.output):
            assert value.type.tensor_type.HasField("shape"), value.name
            assert all(shape_of(value)), value.name  # no size without a name
        assert [shape_of(v) for v in inferred.graph.output] == [shape_of(v) for v in model.graph.output]


@pytest.mark.parametrize(("name", "recipe", "ops"), CASES[3:5])
def test_the_program_alone_says_how_many_nodes_there_are(name: str, recipe: str, ops: str) -> None:
    """Nothing is unrolled along tokens; those of a portable sleep are in blocks of eight."""

    def counts(window: int) -> list[Counter[str]]:
        return [
            Counter(re.findall(r"op_type: \"(\w+)\"", str(onnx.load(path, load_external_data=False).graph)))
            for path in files(name, recipe, ops, window)
        ]

    assert counts(WINDOW - 1) == counts(WINDOW - 3)


@pytest.mark.parametrize(("name", "ops"), [("llama", "ort"), ("gemma2", "portable"), ("gpt2", "ort")])
def test_declared_shapes_are_those_that_values_have(name: str, ops: str) -> None:
    """A runtime plans its memory by them: logits are wanted for fewer tokens than there are."""
    folder, _ = exported(name, "parallel", ops)
    model = onnx.load(folder / "wake.onnx")
    outputs = {value.name for value in model.graph.output}
    model.graph.output.extend(value for value in model.graph.value_info if value.name not in outputs)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    given: dict[str, Any] = {}
    for value in model.graph.input:
        shape = [dims.evaluate(dims.parse_dim(str(d)), SIZES) for d in shape_of(value)]
        given[value.name] = np.zeros(shape, DTYPES[value.type.tensor_type.elem_type])
    given["tokens"] = np.random.default_rng(0).integers(0, VOCAB, given["tokens"].shape)
    given["lengths"] += SIZES["T"]
    found = dict(zip([v.name for v in session.get_outputs()], session.run(None, given), strict=True))
    assert len(model.graph.value_info) > 100
    for value in model.graph.output:
        wanted = tuple(dims.evaluate(dims.parse_dim(str(d)), SIZES) for d in shape_of(value))
        assert found[value.name].shape == wanted, value.name
