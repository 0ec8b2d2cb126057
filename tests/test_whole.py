"""Files and folders that are the old ones or the whole new ones: replaced, killed, full disks, links, two writers."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sleepc import whole_folder
from sleepc.errors import SleepcError, SleepcWarning, UsageError
from sleepc.output_place import check_folder_place
from sleepc.owned import locked
from sleepc.whole_file import write_whole
from sleepc.whole_folder import moved_away, written_beside

ROOT = Path(__file__).resolve().parents[1]
MARK = "mark.json"
WAYS = ["exchange", "two renames"]


def write(target: Path, text: str, *, force: bool = False) -> None:
    with written_beside(target, force=force, mark=MARK) as draft:
        (draft / MARK).write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the system replaces a folder."""
    if request.param == "two renames":
        monkeypatch.setattr(whole_folder, "exchanged", lambda one, other: False)
    return str(request.param)


@contextmanager
def killed(folder: Path, body: str) -> Iterator[None]:
    """A process that writes in `folder` and is killed where `body` says `stop()`."""
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from sleepc import whole_folder, whole_file\n"
        "stop = lambda *x: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"{body}\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(folder)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    yield


def test_replaced_or_left_as_it_was(tmp_path: Path, way: str) -> None:
    target = tmp_path / "out"
    write(target, "one")
    with pytest.raises(UsageError, match="exists"):
        write(target, "two")
    write(target, "two", force=True)
    assert (target / MARK).read_text() == "two"
    with pytest.raises(TypeError), written_beside(target, force=True, mark=MARK) as draft:
        (draft / MARK).write_text(3)  # type: ignore[arg-type]
    assert (target / MARK).read_text() == "two"
    assert names(tmp_path) == ["out"]


def test_there_is_always_one(tmp_path: Path) -> None:
    """A reader in another process never finds nothing there."""
    target = tmp_path / "out"
    write(target, "0")
    script = (
        "import sys; from pathlib import Path\n"
        "path = Path(sys.argv[1]); print(flush=True)\n"
        "while path.read_text() != 'end': pass\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(target / MARK)], stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        reader.stdout.readline()
        for text in [*map(str, range(100)), "end"]:
            write(target, text, force=True)
        assert reader.wait() == 0


def test_what_a_link_leads_to_is_replaced(tmp_path: Path, way: str) -> None:
    write(tmp_path / "real", "one")
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "link", "two", force=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / MARK).read_text() == "two"
    assert names(tmp_path) == ["link", "real"]


def test_rights_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write(tmp_path / "out", "one")
        write_whole(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_the_last_of_two_writers_wins(tmp_path: Path, way: str) -> None:
    target = tmp_path / "out"
    with written_beside(target, force=True, mark=MARK) as draft:
        (draft / MARK).write_text("slow")
        write(target, "quick")
        assert (target / MARK).read_text() == "quick"
    assert (target / MARK).read_text() == "slow"
    assert names(tmp_path) == ["out"]


def test_the_second_of_two_writers_is_told_where_nothing_may_be_replaced(tmp_path: Path) -> None:
    target = tmp_path / "out"

    def slow() -> None:
        with written_beside(target, force=False, mark=MARK) as draft:
            (draft / MARK).write_text("slow")
            write(target, "quick")

    with pytest.raises(UsageError, match="exists"):
        slow()
    assert (target / MARK).read_text() == "quick"
    assert names(tmp_path) == ["out"]


WRITING = "with whole_folder.written_beside(Path(sys.argv[1]) / '{}', force=True, mark='mark.json') as d:\n"


def written(path: Path) -> None:
    write(path, "x")


def tried(path: Path) -> None:
    check_folder_place(path, "-o")


@pytest.mark.parametrize(
    ("begin", "where", "count"), [(written, "out", 0), *((tried, "a/b/out", count) for count in range(3))]
)
def test_a_signal_just_after_a_folder_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begin: Callable[[Path], None], where: str, count: int
) -> None:
    """A draft and the folders above it go, whichever of them was the last that was made."""
    mkdir, made = Path.mkdir, iter(range(9))

    def interrupted(path: Path, *arguments: Any, **options: Any) -> None:
        mkdir(path, *arguments, **options)
        if path != tmp_path and next(made) == count:
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "mkdir", interrupted)
    with pytest.raises(KeyboardInterrupt):
        begin(tmp_path / where)
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["out", "another [x]"])
def test_drafts_of_the_killed_are_removed(tmp_path: Path, name: str) -> None:
    """Of whatever name, at the next write; a draft that a living process writes stays."""
    with killed(tmp_path, WRITING.format(name) + "    (d / 'big').write_text('x' * 9999); stop()"):
        (left,) = names(tmp_path)
    with written_beside(tmp_path / "alive", force=False, mark=MARK) as draft:
        assert not (tmp_path / left).exists(), "the first writer removes it"
        write(tmp_path / "out", "one")
        assert draft.is_dir()
        (draft / MARK).write_text("")
    assert names(tmp_path) == ["alive", "out"]


@pytest.fixture(autouse=True)
def said(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """What was warned of; tests of what is left behind expect it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SleepcWarning)
        found: list[str] = []
        yield found
    found += [str(w.message) for w in caught]
    if "killed" in request.node.name:
        assert any("killed" in text for text in found), found
    else:
        assert not found


def test_killed_between_two_renames(tmp_path: Path) -> None:
    """What stood there is named by who looks for it, and put back at the next write."""
    target = tmp_path / "out"
    write(target, "one")
    body = "whole_folder.exchanged = lambda *x: False\nrename, Path.rename = Path.rename, lambda a, b: rename(a, b) if "
    body += "a.name == 'out' else stop()\n" + WRITING.format("out") + "    (d / 'mark.json').write_text('two')"
    with killed(tmp_path, body):
        assert not target.exists()
    old = moved_away(target)
    assert old is not None
    assert (old / MARK).read_text() == "one"
    with pytest.raises(UsageError, match="exists"):
        write(target, "three")
    assert (target / MARK).read_text() == "one"
    assert names(tmp_path) == ["out"]


def test_killed_after_an_exchange(tmp_path: Path) -> None:
    write(tmp_path / "out", "one")
    body = "whole_folder._remove = stop\n" + WRITING.format("out") + "    (d / 'mark.json').write_text('two')"
    with killed(tmp_path, body):
        assert (tmp_path / "out" / MARK).read_text() == "two"
    write(tmp_path / "out", "three", force=True)
    assert (tmp_path / "out" / MARK).read_text() == "three"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("there", ["pipe", "folder", "link to a pipe", "link to nothing"])
def test_only_a_file_is_replaced_by_one(tmp_path: Path, there: str) -> None:
    """Also from Python, where nobody has looked before: as root, a rename onto /dev/null would be possible."""
    place, other = tmp_path / "place", tmp_path / "other"
    if there == "folder":
        place.mkdir()
    elif there == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to(other)
    if there == "link to a pipe":
        os.mkfifo(other)
    before, kind = names(tmp_path), place.lstat().st_mode
    with pytest.raises(UsageError, match="it exists and is not a file"):
        write_whole(place, b"new")
    assert (names(tmp_path), place.lstat().st_mode) == (before, kind)


def test_parts_of_files(tmp_path: Path) -> None:
    """What a killed process left of a file is removed when the file is written again."""
    file = tmp_path / "state"
    with killed(tmp_path, "os.fsync = stop\nwhole_file.write_whole(Path(sys.argv[1]) / 'state', b'one')"):
        assert len(names(tmp_path)) == 1
    alive = tmp_path / ".state.00000000.part"
    alive.write_text("")
    with locked(alive) as ours:
        assert ours
        write_whole(file, b"two")
    assert file.read_bytes() == b"two"
    assert names(tmp_path) == [alive.name, "state"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_told_by_the_target(tmp_path: Path, number: int) -> None:
    with (
        pytest.raises(SleepcError, match="disk is full") as caught,
        written_beside(tmp_path / "out", force=False, mark=MARK),
    ):
        raise OSError(number, os.strerror(number), "somewhere", None, "else")
    assert caught.value.where == str(tmp_path / "out")
    assert names(tmp_path) == []
