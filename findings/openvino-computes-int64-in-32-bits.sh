#!/usr/bin/env bash
# The CPU plugin of OpenVINO 2026.4.0 computes int64 in 32 bits: it converts models that way, without a message. Numbers
# beyond 2^31 are cut, also where they are only passed on, and outputs still have the type int64. Whole numbers that are
# keys of a sort, positions or hashes are then others than ONNX and ONNX Runtime 1.32.0 say.
# Seen 2026-11-30:
#     pass on 2^40 + 1: OpenVINO 1, ONNX Runtime 1099511627777
#     3 * 2^40: OpenVINO 2147483645, ONNX Runtime 3298534883328
#     the place of the largest of 2^40 * [1, 3, 2]: OpenVINO 0, ONNX Runtime 1
# Fails where that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet openvino==2026.4.0 onnx==1.23.2 onnxruntime==1.32.0 numpy
cat > wide.py <<'PY'
import sys

import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import TensorProto, helper

WIDE = 2**40


def results(nodes, given):
    """What OpenVINO and ONNX Runtime make of x."""
    value = [helper.make_tensor_value_info(name, TensorProto.INT64, [None]) for name in ("x", "y")]
    wide = onnx.numpy_helper.from_array(np.array(WIDE), "wide")
    zero = onnx.numpy_helper.from_array(np.array(0), "zero")
    graph = helper.make_graph(nodes, "wide", value[:1], value[1:], [wide, zero])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, "wide.onnx")
    other = np.array(openvino.Core().compile_model("wide.onnx", "CPU")([given])[0])
    (right,) = onnxruntime.InferenceSession("wide.onnx", providers=["CPUExecutionProvider"]).run(None, {"x": given})
    return other, right


node, same = helper.make_node, 0
cases = [
    ("pass on 2^40 + 1", [node("Add", ["x", "zero"], ["y"])], np.array([WIDE + 1])),
    ("3 * 2^40", [node("Mul", ["x", "wide"], ["y"])], np.array([3])),
    ("the place of the largest of 2^40 * [1, 3, 2]",
     [node("Mul", ["x", "wide"], ["m"]), node("ArgMax", ["m"], ["y"], axis=0)], np.array([1, 3, 2])),
]
for name, nodes, given in cases:
    other, right = results(nodes, given)
    print(f"{name}: OpenVINO {other[0]}, ONNX Runtime {right[0]}")
    same += int(np.array_equal(other, right))
sys.exit(bool(same))
PY
venv/bin/python wide.py || { echo "it has changed" >&2; exit 1; }
