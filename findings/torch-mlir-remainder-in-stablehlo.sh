#!/usr/bin/env bash
# torch-mlir 20261001 lowers aten.remainder of integers to stablehlo.remainder as it stands. PyTorch's remainder has the
# sign of the divisor, StableHLO's that of the dividend, so that a negative place in a ring is another one, and nothing
# is said. The same operator lowered to linalg is right.
# Seen 2026-11-30, [-5, -1, 0, 1, 5] % 4 in IREE 3.13.0, where PyTorch's definition gives [3, 3, 0, 1, 1]:
#     linalg: [3, 3, 0, 1, 1]
#     stablehlo: [-1, -1, 0, 1, 1]
# Fails where that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet packaging torch-mlir==20261001
venv/bin/python -m pip install --quiet iree-base-compiler==3.13.0 iree-base-runtime==3.13.0 numpy
cat > torch.mlir <<'MLIR'
func.func @remainders(%x: !torch.vtensor<[5],si64>) -> !torch.vtensor<[5],si64> {
  %four = torch.constant.int 4
  %y = torch.aten.remainder.Scalar %x, %four : !torch.vtensor<[5],si64>, !torch.int -> !torch.vtensor<[5],si64>
  return %y : !torch.vtensor<[5],si64>
}
MLIR
opt=$(find venv -name torch-mlir-opt | grep _mlir_libs)
"$opt" --pass-pipeline='builtin.module(torch-backend-to-linalg-on-tensors-backend-pipeline)' torch.mlir > linalg.mlir
"$opt" --pass-pipeline='builtin.module(torch-backend-to-stablehlo-backend-pipeline)' torch.mlir > stablehlo.mlir
cat > run.py <<'PY'
import sys

import iree.compiler
import iree.runtime
import numpy as np

numbers, right = np.array([-5, -1, 0, 1, 5]), [3, 3, 0, 1, 1]
found = {}
for name, dialect in {"linalg": "auto", "stablehlo": "stablehlo"}.items():
    compiled = iree.compiler.compile_file(f"{name}.mlir", input_type=dialect, target_backends=["llvm-cpu"],
                                          extra_args=["--iree-llvmcpu-target-cpu=generic"])
    module = iree.runtime.load_vm_flatbuffer(compiled, driver="local-sync")
    found[name] = np.asarray(module["remainders"](numbers)).tolist()
    print(f"{name}: {found[name]}")
sys.exit(found != {"linalg": right, "stablehlo": [-1, -1, 0, 1, 1]})
PY
venv/bin/python run.py || { echo "it has changed" >&2; exit 1; }
