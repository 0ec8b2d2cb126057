"""The coverage benchmark tries families in processes of their own, goes on where it stopped, and writes its tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


PROGRAM = ROOT / "benchmarks" / "coverage.py"


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run over one promised family and one without attention: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("coverage")
    given = ("--jobs", "1", "--work", str(folder), "--out", str(folder / "docs"), "--families", "llama,mamba")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(PROGRAM), *given]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT.parent, timeout=250)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout
    return folder, done.stdout


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run it in this process, where no family is waited for."""
    spec = spec_from_file_location("coverage_of_families", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # by its name a child is told what to run
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "start_server", lambda: None)

    def run(*arguments: str) -> Any:
        monkeypatch.setattr(sys, "argv", ["coverage.py", "--jobs", "1", *arguments])
        return module.main()

    return run


@pytest.mark.slow
def test_statuses(first: tuple[Path, str]) -> None:
    folder, out = first
    llama, mamba = json.loads((folder / "docs" / "coverage.json").read_text())
    assert (llama["family"], llama["status"], llama["reason"], llama["softmax"]) == ("llama", "verified", "", True)
    assert (mamba["family"], mamba["status"], mamba["softmax"]) == ("mamba", "refused", False)
    assert "1 of 1 families with softmax attention are verified (100%)" in out
    assert "| **llama** | verified |" in (folder / "docs" / "coverage.md").read_text()


@pytest.mark.slow
def test_what_was_found_is_not_tried_again(
    first: tuple[Path, str], run: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = first
    kept = (folder / "results.jsonl").read_text()
    assert run("--work", str(folder), "--families", "llama,mamba") == 0
    assert (folder / "results.jsonl").read_text() == kept
    assert "1/2" not in capsys.readouterr().out


def test_a_promised_family_that_is_not_verified_fails(
    tmp_path: Path, run: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--work", str(tmp_path), "--families", "llama", "--timeout", "0") == 1
    assert "llama: failed no result after 0 s" in capsys.readouterr().out


def test_an_unknown_family_is_named(tmp_path: Path, run: Callable[..., Any]) -> None:
    with pytest.raises(SystemExit, match=r"does not have: no_such_model$"):
        run("--work", str(tmp_path), "--families", "llama,no_such_model")
