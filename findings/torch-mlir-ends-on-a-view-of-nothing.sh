#!/usr/bin/env bash
# torch-mlir 20261001 ends with SIGFPE, a division by zero, when it lowers a view of a tensor without elements to linalg:
# no error names the operator, and a program that runs its passes in its own process ends with it. The same view of a
# tensor with elements is lowered.
# Seen 2026-11-30: 2x3 is lowered, 2x0 ends the process.
# Fails where that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --no-deps torch-mlir==20261001
lower() {
    cat <<MLIR | venv/bin/python -m torch_mlir.tools.opt --pass-pipeline='builtin.module(torch-backend-to-linalg-on-tensors-backend-pipeline)' >out 2>&1
func.func @f(%x: !torch.vtensor<[2,$1],f32>) -> !torch.vtensor<[1,2,$1],f32> {
  %n = torch.constant.int $1
  %one = torch.constant.int 1
  %two = torch.constant.int 2
  %sizes = torch.prim.ListConstruct %one, %two, %n : (!torch.int, !torch.int, !torch.int) -> !torch.list<int>
  %y = torch.aten.view %x, %sizes : !torch.vtensor<[2,$1],f32>, !torch.list<int> -> !torch.vtensor<[1,2,$1],f32>
  return %y : !torch.vtensor<[1,2,$1],f32>
}
MLIR
}
lower 3 && grep -q tensor.expand_shape out && echo "2x3 is lowered"
if lower 0; then
    echo "2x0 is lowered: it has changed" >&2
    exit 1
fi
! grep -q "error:" out && echo "2x0 ends the process"
