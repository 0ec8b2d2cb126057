"""Exports compute in OpenVINO and onnxruntime-web what they do in ONNX Runtime, over two sleeps."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CASES = ("portable", "portable-recurrent", "ort-sleeps-portable")
BOUND = 1e-3


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("runtime", ["openvino", "web"])
def test_a_tiny_model_in_another_runtime(runtime: str) -> None:
    """What it needs is installed into build/ the first time."""
    if runtime == "web" and not shutil.which("npm"):
        pytest.skip("npm is not installed: apt-get install npm")
    command = [sys.executable, str(ROOT / "benchmarks" / "runtimes.py"), "--tiny", "--json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    options: dict[str, Any] = {"capture_output": True, "text": True, "env": environment, "timeout": 1400}
    done = subprocess.run([*command, "--only", runtime, "--cases", ",".join(CASES)], cwd=ROOT.parent, **options)
    assert done.returncode == 0, done.stderr[-2000:]
    machine, *rows = map(json.loads, done.stdout.splitlines())
    assert machine["kind"] == "machine"
    assert not [row for row in rows if "refused" in row]
    files = [row for row in rows if "file" in row]
    assert len(files) == 3 * len(CASES)
    assert max(row["error"] for row in files) < BOUND
    carried = [row["carried"] for row in rows if "carried" in row]
    assert len(carried) == len(CASES)
    assert max(carried) < BOUND
