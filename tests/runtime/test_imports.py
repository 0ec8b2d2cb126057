"""The runtime runs where torch is not installed."""

from __future__ import annotations

import subprocess
import sys

import pytest

MODULES = ["session", "steps", "batch", "sampling", "text", "state_file"]


@pytest.mark.parametrize("name", MODULES)
def test_no_torch(name: str) -> None:
    code = f"import sys, sleepc, sleepc.runtime.{name}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
