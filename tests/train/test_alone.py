"""Folders that a training or a calibration works in are one process's, and what a killed one left is cleared away."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import sleepc as package
from sleepc.api import Program
from sleepc.errors import UsageError
from sleepc.folder_lock import only_one
from sleepc.train.checkpoint import checkpoints
from sleepc.train.trainer import Hooks
from tests.cli.models import run_here, save_model

FAST: dict[str, Any] = {"length": 20, "batch": 4, "steps": 3, "device": "cpu", "lr": 1e-4, "start": "kept"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an artifact and a text."""
    folder = tmp_path_factory.mktemp("alone")
    package.convert(save_model(folder / "model"), {"window": 6, "sinks": 1}).save(folder / "artifact")
    (folder / "text.txt").write_text(" ".join(f"w{i * 7 % 59 + 1}" for i in range(900)))
    return folder


def _distil(program: Program, text: Path, work: Path, **options: Any) -> Any:
    return program.distil([text], work=work, **FAST, **options)


def _train(program: Program, text: Path, work: Path, **options: Any) -> Any:
    return program.train(text=[text], work=work, **FAST, **options)


def _calibrate(program: Program, text: Path, work: Path, **options: Any) -> Any:
    return program.calibrate([text], tokens=64, steps=1, work=work, **options)


@pytest.mark.parametrize("learn", [_distil, _train, _calibrate])
def test_a_folder_that_another_has_is_refused_and_left_alone(
    made: Path, tmp_path: Path, learn: Callable[..., Any]
) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "layer-0000.json").write_text("theirs")
    program = package.load(made / "artifact")
    refused = pytest.raises(UsageError, match=r"process \d+ on .*something else, since .*is writing here")
    with ThreadPoolExecutor(1) as other, only_one(tmp_path / "work", "something else"), refused:
        other.submit(learn, program, made / "text.txt", tmp_path / "work").result()
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["layer-0000.json"]
    if learn is not _calibrate:
        assert learn(program, made / "text.txt", tmp_path / "work").finished
    assert [path.name for path in tmp_path.iterdir()] == ["work"], "no lock is left"


@pytest.mark.parametrize("command", ["distil", "train", "calibrate"])
def test_commands_name_who_has_the_artifact(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    artifact = Path(shutil.copytree(made / "artifact", tmp_path / "artifact"))
    with ThreadPoolExecutor(1) as other, only_one(artifact, "distil"):
        arguments = (capsys, command, artifact, "--text", made / "text.txt")
        code, _, err = other.submit(run_here, *arguments).result()
    assert (code, "(distil, since" in err, "internal" in err) == (2, True, False), err
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_what_a_killed_training_left_is_cleared_away(made: Path, tmp_path: Path) -> None:
    """A new one does not count the old one's checkpoints among its own; files of others stay."""
    program = package.load(made / "artifact")
    (tmp_path / "step-00000900").mkdir()
    (tmp_path / "step-00000900" / "state.safetensors").write_text("half")
    (tmp_path / "notes.txt").write_text("mine")
    hooks = Hooks(should_stop=lambda: True)
    assert not _distil(program, made / "text.txt", tmp_path, hooks=hooks).finished
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000001"]
    assert (tmp_path / "notes.txt").read_text() == "mine"
