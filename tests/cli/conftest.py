"""A model and its artifact that many tests read, made once. What writes into a folder makes its own."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

import sleepc
from tests.cli.models import run_here, save_model

Here = Callable[..., CompletedProcess[str]]


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Here:
    """Run a command to its end, in this process, with nothing on standard input."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))

    def run(*arguments: object) -> CompletedProcess[str]:
        return CompletedProcess([*map(str, arguments)], *run_here(capsys, *arguments))

    return run


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("read") / "model")


@pytest.fixture(scope="session")
def artifact(model: Path) -> Path:
    return sleepc.convert(model, {"window": 8, "sinks": 2}).save(model.parent / "artifact")
