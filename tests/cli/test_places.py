"""Where output goes is tried before any work, for every command; so are devices, and bytes on standard input."""

from __future__ import annotations

import io
import os
import sys
from functools import cache
from pathlib import Path
from typing import NoReturn

import pytest

import sleepc as package
from sleepc.errors import UsageError
from sleepc.output_place import check_file_place, check_folder_inside, check_folder_place
from tests.cli.models import run_here, save_model

load = cache(package.load)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("places")
    (folder / "text.txt").write_text("w1 w2 " * 400)
    return package.convert(save_model(folder / "model"), {"window": 8, "sinks": 2}).save(folder / "artifact")


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Places that cannot be written to, by what is the matter with them. Work is not to be begun."""

    def work(*arguments: object, **options: object) -> NoReturn:
        raise AssertionError("work was begun")

    monkeypatch.setattr("sleepc.api.load", load)
    for name in (
        "converting.convert",
        "converting.inspect",
        "api.Program.check_bytes",
        "api.capture",
        "capturing.capture",
    ):
        monkeypatch.setattr(f"sleepc.{name}", work)
    (tmp_path / "file").write_text("mine")
    return {
        "a file as parent": tmp_path / "file" / "x.svg",
        "a file as parent of a parent": tmp_path / "file" / "y" / "x.svg",
        "no file system for it": Path("/proc/x.svg"),
        "a name too long": tmp_path / ("x" * 250 + ".svg"),
    }


COMMANDS = {
    "convert -o": ("convert", "MODEL", "-o", "PLACE"),
    "convert --dump-graphs": ("convert", "MODEL", "-o", "FREE", "--dump-graphs", "PLACE"),
    "adapt -o": ("adapt", "ARTIFACT", "absent", "-o", "PLACE"),
    "calibrate -o": ("calibrate", "ARTIFACT", "--text", "TEXT", "-o", "PLACE"),
    "distil -o": ("distil", "ARTIFACT", "--text", "TEXT", "-o", "PLACE"),
    "train -o": ("train", "ARTIFACT", "--text", "TEXT", "-o", "PLACE"),
    "export -o": ("export", "ARTIFACT", "--to", "onnx", "-o", "PLACE"),
    "export --dump-graphs": ("export", "ARTIFACT", "--to", "onnx", "--dump-graphs", "PLACE"),
    "run --state": ("run", "ARTIFACT", "w1", "--state", "PLACE"),
    "chat --state": ("chat", "ARTIFACT", "--state", "PLACE"),
    "eval --plot": ("eval", "ARTIFACT", "--task", "copy", "--plot", "PLACE"),
    "inspect --svg": ("inspect", "ARTIFACT", "--svg", "PLACE"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_place_that_cannot_be_written(
    command: str, artifact: Path, nowhere: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    option = command.split()[1]
    before = sorted(tmp_path.iterdir())
    for what, place in nowhere.items():
        names = {"MODEL": artifact.parent / "model", "ARTIFACT": artifact, "TEXT": artifact.parent / "text.txt"}
        names |= {"PLACE": place, "FREE": tmp_path / "free"}
        code, said, told = run_here(capsys, *(names.get(word, word) for word in COMMANDS[command]))
        assert (code, said) == (2, ""), told
        assert told.startswith("error: "), told
        assert str(place) in told
        assert f"({option})" in told, told
        assert sorted(tmp_path.iterdir()) == before, what
    assert (tmp_path / "file").read_text() == "mine"


def test_places_that_can_be_written(tmp_path: Path) -> None:
    check_folder_place(tmp_path / "a" / "b" / "c", "-o")
    check_folder_inside(tmp_path, "--dump-graphs")
    (tmp_path / "file").write_text("old")
    (tmp_path / "to-file").symlink_to("file")
    for name in ("file", "to-file", "new"):
        check_file_place(tmp_path / name, "--state")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "to-file"]
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize("place", ["", ".", os.devnull, "absent/file", "link"])
def test_only_a_file_is_replaced_by_one(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root, a rename onto /dev/null would be possible."""
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to("gone")
    with pytest.raises(UsageError):
        check_file_place(Path(place), "--state")
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


@pytest.mark.parametrize("device", ["foo", "", "cpu:", "cpu:x", "cpu:7", "meta", "cuda:99", "cuda:²", "CPU"])
@pytest.mark.parametrize(
    "command", [("run", "w1"), ("chat",), ("eval", "--task", "copy"), ("distil", "--self"), ("train", "--task", "khop")]
)
def test_a_device_that_is_not_there(
    command: tuple[str, ...],
    device: str,
    artifact: Path,
    nowhere: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    name, *rest = command
    code, said, told = run_here(capsys, name, artifact, *rest, "--device", device)
    assert (code, said) == (2, ""), told
    assert told.startswith("error: "), told
    assert "--device" in told


def test_devices_that_are_there(artifact: Path) -> None:
    for device in ("cpu", "cpu:0"):
        assert load(artifact).session(device=device).feed([1]).shape == (1, 61)


@pytest.mark.parametrize("data", [b"w1 \xff w2", b"w1\nw2 \xe9t\xe9", b"\xff\xfew\x001\x00"])
def test_bytes_that_are_no_text(
    data: bytes, artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sleepc.api.load", load)
    bad = next(byte for byte in data if byte > 0x7F)
    wanted = f"is not UTF-8 text: byte 0x{bad:02x} in line {(data.index(bytes([bad])) and data[:4].count(10) + 1) or 1}"
    file = tmp_path / "file"
    file.write_bytes(data)
    escaped = data.decode("utf-8", "surrogateescape")
    calls = {
        "standard input": ("run", artifact),
        str(file): ("run", artifact, "-f", file),
        "the prompt": ("run", artifact, escaped.replace("\0", "")),
        "--system": ("chat", artifact, "--system", escaped.replace("\0", "")),
        "--stop": ("run", artifact, "w1", "--stop", escaped.replace("\0", "")),
    }
    for source, command in calls.items():
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="latin-1"))
        code, said, told = run_here(capsys, *command)
        assert (code, said) == (2, "")
        assert f"error: {source} {wanted}" in told, told


def test_a_conversation_goes_on_after_such_bytes(
    artifact: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sleepc.api.load", load)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"w1 \xff\nw1 w2\n")))
    code, said, told = run_here(capsys, "chat", artifact, "--max-tokens", 3)
    assert (code, len(said.split())) == (0, 3)
    assert "error: the message is not UTF-8 text: byte 0xff in line 1" in told


@pytest.mark.parametrize("option", ["-f", "--file"])
def test_a_text_without_an_end_is_refused(artifact: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, told = run_here(capsys, "run", artifact, option, "/dev/zero")
    assert (code, "it is a device" in told) == (2, True), told
    code, _, told = run_here(capsys, "run", artifact, option, os.devnull)
    assert "there is nothing to read" in told


def test_a_model_whose_path_no_artifact_can_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_model(tmp_path / "model").rename(tmp_path / os.fsdecode(b"m\xff"))
    code, _, told = run_here(capsys, "convert", folder, "-o", tmp_path / "out", "--window", 8)
    assert (code, "path of the model is not UTF-8" in told, (tmp_path / "out").exists()) == (2, True, False), told
