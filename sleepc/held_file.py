"""A file that is opened once: what is read, hashed and mapped later is what was opened. Imports no torch."""

from __future__ import annotations

import hashlib
import os
import stat
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sleepc.errors import SleepcError

PIECE = 512 << 10  # bytes read at a time when a file is streamed: they stay in the cache of the core that hashes them
POINTER, POINTED = b"version https://git-lfs", 1024  # what stands in place of a file, and is at most so long
DAMAGED = "The file is damaged or incomplete: fetch it again."
AGAIN = "Load it again."
SNAPSHOTS, BLOBS = "snapshots", "blobs"  # of the hub's cache
TRIES = 100
Loaded = TypeVar("Loaded")


class HeldFile:
    """An open regular file. Another file that comes to stand at its path is not read; bytes that are written over its
    own are noticed (`require_unchanged`). Raises SleepcError if it cannot be opened, is a device or a pipe, or
    stands for a file (a pointer of Git LFS).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with reading(path):
            # a pipe without a writer would wait forever
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            weakref.finalize(self, os.close, self.descriptor)
            status = os.fstat(self.descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise SleepcError(f"cannot read {path.name}: it is not a regular file", where=str(path))
        self.size, self.opened = status.st_size, _version(status)
        if len(POINTER) < self.size < POINTED and self.read(0, len(POINTER)) == POINTER:
            what = f"{path.name} is only a Git LFS pointer"
            raise SleepcError(
                what, where=str(path), fix="Fetch the files: git lfs pull, in the folder of the repository."
            )

    def __copy__(self) -> HeldFile:
        """Itself: it never changes."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> HeldFile:
        """Itself."""
        return self

    def read_into(self, view: memoryview, place: int) -> None:
        """Fill `view` with the bytes from `place` on. Raises SleepcError if the file has become shorter."""
        with reading(self.path):
            count = os.preadv(self.descriptor, [view], place)
        if count != len(view):
            raise SleepcError(f"{self.path.name} was cut off while it was read", where=str(self.path), fix=DAMAGED)

    def read(self, start: int, end: int) -> bytes:
        """The bytes [start, end)."""
        buffer = bytearray(end - start)
        self.read_into(memoryview(buffer), start)
        return bytes(buffer)

    def pieces(self, start: int, end: int) -> Iterator[memoryview]:
        """The bytes [start, end), one piece after the other in the same memory."""
        buffer = memoryview(bytearray(min(PIECE, end - start)))
        for place in range(start, end, PIECE):
            view = buffer[: min(PIECE, end - place)]
            self.read_into(view, place)
            yield view

    def sha256(self) -> str:
        """sha256 of the whole file."""
        digest = hashlib.sha256()
        for piece in self.pieces(0, self.size):
            digest.update(piece)
        return digest.hexdigest()

    def copy_to(self, target: Path) -> None:
        """Write the file's bytes to a new file. Raises OSError if the disk refuses."""
        with target.open("xb") as file:
            for piece in self.pieces(0, self.size):
                file.write(piece)

    def require_unchanged(self) -> None:
        """Raises SleepcError if the file was written to since it was opened."""
        with reading(self.path):
            now = _version(os.fstat(self.descriptor))
        if now != self.opened:
            raise SleepcError(f"{self.path.name} was changed while it was open", where=str(self.path), fix=AGAIN)

    def require_in_place(self) -> None:
        """Raises SleepcError if the file was changed, or another one stands at its path: who opens that would read
        what was not checked.
        """
        self.require_unchanged()
        try:
            same = os.path.samestat(self.path.stat(), os.fstat(self.descriptor))
        except OSError:
            same = False
        if not same:
            raise SleepcError(f"{self.path.name} was replaced while it was open", where=str(self.path), fix=AGAIN)


def _version(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """The operating system's errors as ours."""
    try:
        yield
    except OSError as error:
        raise SleepcError(f"cannot read {path.name}: {error.strerror}", where=str(path)) from error


@contextmanager
def stays(folder: Path) -> Iterator[Callable[[], bool]]:
    """A question for later: is the folder at this path still the one that is there now?"""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        yield lambda: True  # it is not there, which is another's message
        return
    try:
        yield lambda: folder.exists() and os.path.samestat(folder.stat(), os.fstat(descriptor))
    finally:
        os.close(descriptor)


def load_whole(folder: Path, load: Callable[[Path], Loaded]) -> Loaded:
    """What `load` makes of a folder; made again if the folder was replaced meanwhile, so that all of it is from one.

    Raises what `load` raises of a folder that stays.
    """
    for _ in range(TRIES):
        with stays(folder) as is_the_same:
            try:
                loaded = load(folder)
            except SleepcError:
                if is_the_same():
                    raise
                continue
            if is_the_same():
                return loaded
    raise SleepcError("the folder was replaced again and again while it was read", where=str(folder), fix=AGAIN)


def is_inside(folder: Path, path: Path) -> bool:
    """Does `path`, links followed, lie in `folder`? Or in the hub's cache that the folder lies in, whose
    `snapshots`/revision/.. are links to `blobs`?
    """
    if "\0" in str(path):  # no file has that name
        return False
    home, real = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
    roots = [above.parent for above in home.parents if above.name == SNAPSHOTS]
    return home in real.parents or any(real.parent == root / BLOBS for root in roots)


def refuse_links_out(folder: Path, kind: str, fix: str) -> None:
    """Raises SleepcError for a link in a folder of this kind that leads out of it: a tokenizer, say, has no hash."""
    for path in folder.rglob("*"):
        if path.is_symlink() and not is_inside(folder, path):
            raise SleepcError(f"{path.relative_to(folder)} leads out of the {kind}", where=str(path), fix=fix)
