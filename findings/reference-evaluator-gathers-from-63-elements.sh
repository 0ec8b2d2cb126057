#!/usr/bin/env bash
# GatherElements in the ReferenceEvaluator of onnx 1.23.2 takes at most 63 elements along its axis. From 64 on it fails
# on models that onnx.checker accepts and ONNX Runtime 1.32.0 runs, with errors that say nothing of a limit; in one
# dimension the text is that of numpy.choose, which has it. The same by GatherND is right for any number.
# Seen 2026-11-30:
#     63 elements: right
#     64 elements: ValueError: Need at least 0 and at most 64 array objects.
#     [2, 63] along axis 1: right
#     [2, 64] along axis 1: ValueError: cannot reshape array of size 2 into shape (2,3)
#     [64, 2] along axis 0: IndexError: index 54 is out of bounds for axis 0 with size 2
# Fails where that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet onnx==1.23.2 onnxruntime==1.32.0 numpy
cat > gather.py <<'PY'
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator


def told(shape, axis):
    """Three elements along an axis: what the evaluator gives, beside ONNX Runtime."""
    draw, places = np.random.default_rng(0), list(shape)
    places[axis] = 3
    x = draw.standard_normal(shape).astype(np.float32)
    at = draw.integers(0, shape[axis], places)
    inputs = [helper.make_tensor_value_info(*of) for of in (("x", TensorProto.FLOAT, shape), ("at", TensorProto.INT64, places))]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, places)]
    graph = helper.make_graph([helper.make_node("GatherElements", ["x", "at"], ["y"], axis=axis)], "g", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (right,) = session.run(None, {"x": x, "at": at})
    assert np.array_equal(right, np.take_along_axis(x, at, axis))
    try:
        (found,) = ReferenceEvaluator(model).run(None, {"x": x, "at": at})
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "right" if np.array_equal(found, right) else "wrong"


failed = False
for name, shape, axis in [
    ("63 elements", (63,), 0),
    ("64 elements", (64,), 0),
    ("[2, 63] along axis 1", (2, 63), 1),
    ("[2, 64] along axis 1", (2, 64), 1),
    ("[64, 2] along axis 0", (64, 2), 0),
]:
    words = told(shape, axis)
    print(f"{name}: {words}")
    failed |= (words == "right") != (shape[axis] < 64)
sys.exit(failed)
PY
venv/bin/python gather.py || { echo "it has changed" >&2; exit 1; }
