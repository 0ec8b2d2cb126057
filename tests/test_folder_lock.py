"""A folder is one process's: who has it is named, and whoever dies lets go of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sleepc.errors import UsageError
from sleepc.folder_lock import only_one
from tests.cli.models import ROOT

HOLD = """
import sys, time
from pathlib import Path
from sleepc.folder_lock import only_one
with only_one(Path(sys.argv[1]), "a long job"):
    print("held", flush=True)
    time.sleep(100)
"""


def _holder(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD, str(folder)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=str)
def test_another_process_is_named_and_its_death_lets_go(tmp_path: Path, end: signal.Signals) -> None:
    folder = tmp_path / "new" / "folder"
    process = _holder(folder)
    try:
        with pytest.raises(UsageError, match=rf"process {process.pid} on .*a long job, since 20.*is writing here"):
            only_one(folder, "another").__enter__()
    finally:
        process.send_signal(end)
        process.communicate()
    with only_one(folder, "another"):
        pass
    assert list(folder.parent.iterdir()) == []


def _refused(folder: Path) -> str:
    """What another thread is told."""
    with ThreadPoolExecutor(1) as pool, pytest.raises(UsageError) as caught:
        pool.submit(only_one(folder, "that").__enter__).result()
    return str(caught.value)


def test_one_folder_by_two_names_and_two_folders(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    with only_one(tmp_path / "there", "this"):
        assert f"process {os.getpid()}" in _refused(tmp_path / "link")
        with only_one(tmp_path / "other", "that"):
            pass
        with only_one(tmp_path / "link", "a part of this"):
            pass
        assert f"process {os.getpid()}" in _refused(tmp_path / "link")
    with only_one(tmp_path / "link", "that"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "there"]


@pytest.mark.parametrize("words", ["", "{", "[" * 3000, "[1]", '{"pid": "x"}', '{"pid": 1}', '{"pid": 1e999}'])
def test_a_holder_that_says_nothing_sensible(tmp_path: Path, words: str) -> None:
    with only_one(tmp_path / "folder", "this"):
        (tmp_path / ".folder.sleepc-lock").write_text(words)
        assert "another process is writing here" in _refused(tmp_path / "folder")


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / ".linked.sleepc-lock").symlink_to(tmp_path / "file")
    (tmp_path / ".taken.sleepc-lock").mkdir()
    for name in ("file/below", "linked", "taken"):
        with pytest.raises(UsageError, match="nothing can be written there"):
            only_one(tmp_path / name, "this").__enter__()
    assert (tmp_path / "file").read_text() == ""


def test_a_failure_within_it_lets_go(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), only_one(tmp_path / "folder", "this"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
