#!/usr/bin/env bash
# IREE 3.13.0 maps the tensors of a safetensors file that begin on a multiple of 64 bytes, and copies all others into
# memory, without a word. The format asks for no such place: files that safetensors 0.8.0 writes begin their tensors
# wherever the header ends (a multiple of 8), so of two files with equal tensors, whose metadata differ in length, one
# costs its size in memory.
# Seen 2026-11-30, a tensor of 256 MiB, memory that is no page of a file, after it is opened:
#     begins at 128, which is 0 over a multiple of 64: 0 MiB more
#     begins at 136, which is 8 over a multiple of 64: 256 MiB more
# Fails where that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet iree-base-compiler==3.13.0 iree-base-runtime==3.13.0 safetensors==0.8.0 numpy
cat > module.mlir <<'MLIR'
util.global private @w = #flow.parameter.named<"model"::"w"> : tensor<8192x8192xf32>
func.func @row(%x: tensor<8192xf32>) -> tensor<8192xf32> {
  %w = util.global.load @w : tensor<8192x8192xf32>
  %row = tensor.extract_slice %w[7, 0] [1, 8192] [1, 1] : tensor<8192x8192xf32> to tensor<8192xf32>
  %sum = arith.addf %x, %row : tensor<8192xf32>
  return %sum : tensor<8192xf32>
}
MLIR
cat > write.py <<'PY'
import iree.compiler as compiler
import numpy as np
from safetensors.numpy import save_file

compiled = compiler.compile_file("module.mlir", target_backends=["llvm-cpu"], extra_args=["--iree-llvmcpu-target-cpu=generic"])
open("module.vmfb", "wb").write(compiled)
w = np.arange(8192 * 8192, dtype=np.float32).reshape(8192, 8192)
for length in range(1, 80, 8):
    save_file({"w": w}, "w.safetensors", metadata={"about": "x" * length})
    with open("w.safetensors", "rb") as file:
        place = 8 + int.from_bytes(file.read(8), "little")
    if place % 64 in (0, 8):
        save_file({"w": w}, f"over-{place % 64}.safetensors", metadata={"about": "x" * length})
PY
cat > open.py <<'PY'
import sys

import iree.runtime as iree
import numpy as np


def anonymous():
    """MiB of memory of this process that is no page of a file."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


with open(sys.argv[1], "rb") as file:
    place = 8 + int.from_bytes(file.read(8), "little")
instance, device = iree.VmInstance(), iree.get_device("local-sync")
x = iree.asdevicearray(device, np.ones(8192, np.float32))
before = anonymous()
parameters = iree.ParameterIndex()
parameters.load(sys.argv[1], format="safetensors")
provider = parameters.create_provider(scope="model")
module = iree.VmModule.mmap(instance, "module.vmfb")
modules = [iree.create_hal_module(instance, device), iree.create_io_parameters_module(instance, provider), module]
context = iree.VmContext(instance, modules)
arguments, found = iree.VmVariantList(1), iree.VmVariantList(1)
arguments.push_ref(x._buffer_view)
context.invoke(module.lookup_function("row"), arguments, found)
row = iree.DeviceArray(device, found.get_as_object(0, iree.HalBufferView), implicit_host_transfer=True).to_host()
assert row[5] == 7 * 8192 + 5 + 1, row[5]
more = anonymous() - before
print(f"begins at {place}, which is {place % 64} over a multiple of 64: {256 * round(more / 256)} MiB more")
sys.exit((round(more / 256) == 1) != (place % 64 == 8))
PY
venv/bin/python write.py
for file in over-0.safetensors over-8.safetensors; do
    venv/bin/python open.py "$file" || { echo "it has changed" >&2; exit 1; }
done
