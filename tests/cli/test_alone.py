"""One training after another at one place: what the first left there is seen under the lock, before any work."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from pathlib import Path

import pytest
from typer.testing import CliRunner

import sleepc
from sleepc import folder_lock
from sleepc.cli.main import make_app
from sleepc.cli.opening import alone_at
from sleepc.errors import SleepcError, UsageError
from tests.cli.models import save_model


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> sleepc.Program:
    """A program, in no artifact yet."""
    return sleepc.convert(save_model(tmp_path_factory.mktemp("alone") / "model"), {"window": 8, "sinks": 2})


def ending_just_now(monkeypatch: pytest.MonkeyPatch, what_it_leaves: Callable[[], object]) -> None:
    """Another process had the lock when we began, and ends with this."""
    lock = folder_lock._lock

    def late(file: int, folder: Path) -> bool:
        what_it_leaves()
        return lock(file, folder)

    monkeypatch.setattr(folder_lock, "_lock", late)


def change(program: sleepc.Program) -> sleepc.Program:
    """Another program of the same model."""
    other = sleepc.convert(program.source.folder, {"window": 8, "sinks": 1})
    assert other.source == program.source
    return other


def test_an_artifact_that_was_replaced_before_the_lock_was_ours(
    made: sleepc.Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = sleepc.load(copy(made).save(tmp_path / "artifact")).path
    assert place is not None
    old, other = sleepc.load(place), change(made)
    ending_just_now(monkeypatch, lambda: other.save(place, force=True))
    with pytest.raises(SleepcError, match="replaced by another one") as caught:
        alone_at(place, old, "distil", force=True).__enter__()
    assert caught.value.fix == "Load it again."
    assert caught.value.on_command_line[2] == "Run the same command again."
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]
    monkeypatch.undo()
    with alone_at(place, sleepc.load(place), "distil", force=True):
        pass


@pytest.mark.parametrize("command", ["distil", "calibrate"])
def test_an_output_that_came_before_the_lock_was_ours(
    made: sleepc.Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    place, text = copy(made).save(tmp_path / "artifact"), tmp_path / "text.txt"
    text.write_text("w1 w2 w3 " * 100)
    late = sleepc.load(place)
    ending_just_now(monkeypatch, lambda: late.save(tmp_path / "out"))
    done = CliRunner().invoke(make_app(), [command, str(place), "--text", str(text), "-o", str(tmp_path / "out")])
    assert isinstance(done.exception, UsageError)
    assert done.exception.what == f"{tmp_path / 'out'} exists"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifact", "out", "text.txt"]
