"""Kernels compiled for GPUs that are not here, and what they take there. Triton compiles nothing in a process whose
kernels are interpreted: it is a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="Triton is not installed: pip install '.[triton]'")

from sleepc.backends.triton.compiled import Taken, read_table

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "performance.md"


def made(folder: Path, *arguments: str) -> dict[tuple[str, str, int], Taken]:
    """The table by kernel, target and head size, compiled anew."""
    command = [sys.executable, "-m", "sleepc.backends.triton.compiled", *arguments]
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return {(row.kernel, row.target, row.size): row for row in read_table(done.stdout)}


def committed() -> dict[tuple[str, str, int], Taken]:
    return {(row.kernel, row.target, row.size): row for row in read_table(PAGE.read_text(encoding="utf-8"))}


def test_compiles_for_one_gpu_of_each_kind(tmp_path: Path) -> None:
    rows = made(tmp_path, "--size", "64", "sm_90", "gfx942")
    assert {target for _, target, _ in rows} == {"sm_90", "gfx942"}
    assert not [row for row in rows.values() if not row.fits]
    if triton.__version__ in PAGE.read_text(encoding="utf-8"):
        assert rows.items() <= committed().items()


@pytest.mark.slow
def test_compiles_for_all_gpus_as_the_page_says(tmp_path: Path) -> None:
    """To write the table: python -m sleepc.backends.triton.compiled."""
    rows = made(tmp_path)
    if triton.__version__ in PAGE.read_text(encoding="utf-8"):
        assert rows == committed()
    must = ("sm_80", "sm_90", "sm_100", "sm_120", "gfx942")
    assert not [row for row in rows.values() if row.target in must and not row.fits]


@pytest.mark.parametrize(
    ("row", "fits"),
    [
        (Taken("carry", "sm_90", 64, 232448, 255, 0), True),
        (Taken("carry", "sm_90", 64, 232449, 255, 0), False),
        (Taken("carry", "gfx942", 64, 65536, 255, 4), False),
    ],
)
def test_what_does_not_fit(row: Taken, fits: bool) -> None:
    """Shared memory past the limit, which the compiler for AMD says nothing about, and what is spilled."""
    assert row.fits is fits
    assert list(read_table(str(row))) == [row]
