"""The coverage benchmark tries families in processes of their own, goes on where it stopped, and writes its tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "coverage.py"), "--jobs", "1", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT.parent, timeout=250)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run over one promised family and one without attention: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("coverage")
    done = run("--work", str(folder), "--out", str(folder / "docs"), "--families", "llama,mamba")
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout
    return folder, done.stdout


def test_statuses(first: tuple[Path, str]) -> None:
    folder, out = first
    llama, mamba = json.loads((folder / "docs" / "coverage.json").read_text())
    assert (llama["family"], llama["status"], llama["reason"], llama["softmax"]) == ("llama", "verified", "", True)
    assert (mamba["family"], mamba["status"], mamba["softmax"]) == ("mamba", "refused", False)
    assert "1 of 1 families with softmax attention are verified (100%)" in out
    assert "| **llama** | verified |" in (folder / "docs" / "coverage.md").read_text()


def test_what_was_found_is_not_tried_again(first: tuple[Path, str]) -> None:
    folder, _ = first
    kept = (folder / "results.jsonl").read_text()
    done = run("--work", str(folder), "--families", "llama,mamba")
    assert done.returncode == 0
    assert (folder / "results.jsonl").read_text() == kept
    assert "1/2" not in done.stdout


def test_a_promised_family_that_is_not_verified_fails(first: tuple[Path, str]) -> None:
    folder, _ = first
    done = run("--work", str(folder / "short"), "--families", "llama", "--timeout", "0")
    assert done.returncode == 1
    assert "llama: failed no result after 0 s" in done.stdout


def test_an_unknown_family_is_named(tmp_path: Path) -> None:
    done = run("--work", str(tmp_path), "--families", "llama,no_such_model")
    assert done.returncode != 0
    assert "no_such_model" in done.stderr
    assert "llama" not in done.stderr
