#!/usr/bin/env bash
# triton 3.6.0: in its interpreter (TRITON_INTERPRET=1) a loop over range(n), n being a run-time argument of the kernel,
# makes a Python number of an array with one element. NumPy 2.3 warns of that, NumPy 2.4 raises a TypeError, so that no
# such kernel runs; one without the loop does. triton 3.7.1 runs both. triton names no version of NumPy that it needs.
# Seen 2026-11-30:
#     triton 3.6.0, numpy 2.3.5: loop [6.0, 6.0, 6.0, 6.0], plain [3.0, 3.0, 3.0, 3.0]
#     triton 3.6.0, numpy 2.4.6: loop TypeError, plain [3.0, 3.0, 3.0, 3.0]
#     triton 3.7.1, numpy 2.4.6: loop [6.0, 6.0, 6.0, 6.0], plain [3.0, 3.0, 3.0, 3.0]
# Fails where that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet torch==2.13.0
cat > loop.py <<'PY'
import os
import warnings

os.environ["TRITON_INTERPRET"] = "1"
warnings.simplefilter("ignore", DeprecationWarning)
import numpy
import torch
import triton
import triton.language as tl


@triton.jit
def plain(x, y, n, size: tl.constexpr):
    places = tl.arange(0, size)
    tl.store(y + places, tl.load(x + places))


@triton.jit
def loop(x, y, n, size: tl.constexpr):
    places = tl.arange(0, size)
    total = tl.zeros([size], tl.float32)
    for _ in range(n):
        total += tl.load(x + places)
    tl.store(y + places, total)


def result(kernel):
    x, y = torch.full((4,), 3.0), torch.zeros(4)
    try:
        kernel[(1,)](x, y, 2, size=4)
    except Exception as error:
        while error.__cause__ is not None:
            error = error.__cause__
        return "TypeError" if "TypeError" in repr(error) else repr(error)
    return y.tolist()


print(f"triton {triton.__version__}, numpy {numpy.__version__}: loop {result(loop)}, plain {result(plain)}")
PY
for versions in "3.6.0 2.3.5" "3.6.0 2.4.6" "3.7.1 2.4.6"; do
    read -r triton numpy <<< "$versions"
    venv/bin/python -m pip install --quiet --no-deps "triton==$triton" "numpy==$numpy"
    venv/bin/python loop.py
done | tee found
diff found - <<'SEEN'
triton 3.6.0, numpy 2.3.5: loop [6.0, 6.0, 6.0, 6.0], plain [3.0, 3.0, 3.0, 3.0]
triton 3.6.0, numpy 2.4.6: loop TypeError, plain [3.0, 3.0, 3.0, 3.0]
triton 3.7.1, numpy 2.4.6: loop [6.0, 6.0, 6.0, 6.0], plain [3.0, 3.0, 3.0, 3.0]
SEEN
