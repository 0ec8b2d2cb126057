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
MUST = ("sm_80", "sm_90", "sm_100", "sm_120", "gfx942")  # where nothing may be spilled
PAGE = ROOT / "docs" / "performance.md"


def made(folder: Path, *arguments: str) -> str:
    """The table, compiled anew."""
    command = [sys.executable, "-m", "sleepc.backends.triton.compiled", *arguments]
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def committed() -> set[Taken] | None:
    """The table of the page, if it is that of the Triton here."""
    page = PAGE.read_text(encoding="utf-8")
    return set(read_table(page)) if f"Triton {triton.__version__}," in page else None


def test_compiles_for_one_gpu_of_each_kind(tmp_path: Path) -> None:
    """Every kernel in one form of decay, heads of 64."""
    found = set(read_table(made(tmp_path, "--short", "sm_90", "gfx942")))
    assert {row.target for row in found} == {"sm_90", "gfx942"}
    fit(found)


def fit(found: set[Taken]) -> None:
    """Of the Triton whose table is on the page, that table; of another, no more shared memory than is there."""
    known = committed()
    assert found <= (known or found)
    assert not [row for row in found if not (row.fits if known else row.starts) and row.target in MUST]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_compiles_for_all_gpus_as_the_page_says(tmp_path: Path) -> None:
    """To write the table: python -m sleepc.backends.triton.compiled."""
    found = set(read_table(made(tmp_path)))
    assert found == (committed() or found)
    fit(found)


@pytest.mark.parametrize(
    ("row", "fits"),
    [
        (Taken("carry", "head", 64, "sm_90", 255, 232448, 0), True),
        (Taken("carry", "head", 64, "sm_90", 255, 232449, 0), False),
        (Taken("carry", "head", 64, "gfx942", 255, 65536, 4), False),
    ],
)
def test_what_does_not_fit(row: Taken, fits: bool) -> None:
    """Shared memory past the limit, which the compiler for AMD says nothing about, and what is spilled."""
    assert row.fits is fits
    assert row.starts is (row.shared != 232449)
