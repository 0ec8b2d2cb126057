"""A model and its artifact that many tests read, made once. What writes into a folder makes its own."""

from __future__ import annotations

from pathlib import Path

import pytest

import sleepc
from tests.cli.models import save_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("read") / "model")


@pytest.fixture(scope="session")
def artifact(model: Path) -> Path:
    return sleepc.convert(model, {"window": 8, "sinks": 2}).save(model.parent / "artifact")
