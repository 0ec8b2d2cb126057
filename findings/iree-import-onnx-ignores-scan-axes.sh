#!/usr/bin/env bash
# The ONNX importer of IREE 3.13.0 (iree-import-onnx) takes a Scan along axis 0, forward, whatever its attributes say:
# scan_input_axes, scan_output_axes, scan_input_directions and scan_output_directions change nothing, and there is no
# message. Where the dimensions are equal, so that no shape disagrees, the compiled module gives other numbers than
# the operator means. The reference is written in NumPy below, and ONNX Runtime 1.32.0 agrees with it.
# Seen 2026-11-30, running sums of a 3 x 3 input, largest difference from the reference:
#     forward, axis 0: IREE 0, ONNX Runtime 0
#     scan_input_axes=[1]: IREE 6, ONNX Runtime 0
#     scan_output_axes=[1]: IREE 7, ONNX Runtime 0
#     scan_input_directions=[1]: IREE 6, ONNX Runtime 0
#     scan_output_directions=[1]: IREE 13, ONNX Runtime 0
# Fails where that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet iree-base-compiler==3.13.0 iree-base-runtime==3.13.0 onnx==1.22.0 onnxruntime==1.32.0 numpy
cat > scan.py <<'PY'
import subprocess
import sys

import iree.compiler
import iree.runtime
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper


def value(name, *shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def model(attributes):
    """A Scan that adds up the slices of xs, and gives every sum as a slice of sums."""
    steps = [helper.make_node("Add", ["before", "x"], ["after"]), helper.make_node("Identity", ["after"], ["sum"])]
    body = helper.make_graph(steps, "body", [value("before", 3), value("x", 3)], [value("after", 3), value("sum", 3)])
    scan = helper.make_node("Scan", ["start", "xs"], ["end", "sums"], body=body, num_scan_inputs=1, **attributes)
    graph = helper.make_graph([scan], "sums", [value("start", 3), value("xs", 3, 3)], [value("end", 3), value("sums", 3, 3)])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(made, full_check=True)
    return made


def reference(xs, attributes):
    slices = xs.T if attributes.get("scan_input_axes") == [1] else xs
    if attributes.get("scan_input_directions") == [1]:
        slices = slices[::-1]
    sums = np.cumsum(slices, axis=0)
    if attributes.get("scan_output_directions") == [1]:
        sums = sums[::-1]
    return sums.T if attributes.get("scan_output_axes") == [1] else sums


xs, start, failed = np.arange(9, dtype=np.float32).reshape(3, 3), np.zeros(3, np.float32), False
names = ["scan_input_axes", "scan_output_axes", "scan_input_directions", "scan_output_directions"]
for attributes in [{}, *({name: [1]} for name in names)]:
    onnx.save(model(attributes), "scan.onnx")
    importer = [sys.executable, "-m", "iree.compiler.tools.import_onnx", "scan.onnx", "-o", "scan.mlir"]
    subprocess.run(importer, check=True)
    compiled = iree.compiler.compile_file("scan.mlir", input_type="onnx", target_backends=["llvm-cpu"],
                                          extra_args=["--iree-llvmcpu-target-cpu=generic"])
    module = iree.runtime.load_vm_flatbuffer(compiled, driver="local-sync")
    got = np.asarray(module["sums"](start, xs)[1])
    other = onnxruntime.InferenceSession("scan.onnx", providers=["CPUExecutionProvider"]).run(None, {"start": start, "xs": xs})[1]
    want = reference(xs, attributes)
    wrong, right = abs(got - want).max(), abs(other - want).max()
    print(f"{', '.join(f'{name}=[1]' for name in attributes) or 'forward, axis 0'}: IREE {wrong:g}, ONNX Runtime {right:g}")
    failed |= bool((wrong == 0) == bool(attributes) or right != 0)
sys.exit(failed)
PY
venv/bin/python scan.py || { echo "it has changed" >&2; exit 1; }
