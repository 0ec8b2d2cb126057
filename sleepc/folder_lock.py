"""One process at a time: a lock next to a folder, which says who holds it."""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sleepc.errors import SleepcWarning, UsageError

MOST = 4096  # bytes of what a lock says
WITHOUT = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)  # file systems that have no locks
_held: dict[Path, int] = {}  # locks of this process, with the thread that has each


@contextmanager
def only_one(folder: Path, what: str) -> Iterator[None]:
    """Within it nobody else has `folder` (which need not be there): no process of this machine, and no other thread.
    The holder may take it again.

    `what` is being done, for the others to read. Raises UsageError that names the holder. The lock is the operating
    system's: it goes with its process, however that ends, and the file that is left then stands in nobody's way.
    """
    place = folder.resolve()
    path = place.with_name(f".{place.name}.sleepc-lock")
    if _held.get(path) == threading.get_ident():
        yield
        return
    file = _locked(path, place)
    _held[path] = threading.get_ident()
    try:
        said = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%F %T"), "what": what}
        os.truncate(file, 0)
        os.pwrite(file, json.dumps(said).encode()[:MOST], 0)
        yield
    finally:
        del _held[path]
        path.unlink(missing_ok=True)  # first: whoever opens the file after this makes another
        os.close(file)


def _locked(path: Path, folder: Path) -> int:
    """The lock's file, open and locked."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        except OSError as error:
            raise UsageError(
                f"nothing can be written there: {error.strerror}", where=str(path), fix="Choose another place."
            ) from error
        try:
            if _lock(file, folder) and _is(path, file):
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # the holder has removed it in the meantime: it is nobody's lock any more


def _lock(file: int, folder: Path) -> bool:
    """Take the lock. Raises UsageError if somebody has it."""
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UsageError(
            f"{_holder(file)} is writing here",
            where=str(folder),
            fix="Wait for it, or choose another place with -o.",
        ) from error
    except OSError as error:
        if error.errno not in WITHOUT:
            raise
        warnings.warn(
            f"{folder} is on a file system without locks: let no other process write there", SleepcWarning, stacklevel=5
        )
    return True


def _is(path: Path, file: int) -> bool:
    """Is the open file still the one of this name?"""
    try:
        return os.path.samestat(path.stat(follow_symlinks=False), os.fstat(file))
    except FileNotFoundError:
        return False


def _holder(file: int) -> str:
    """The holder of the lock, in words; it may not have written so yet."""
    try:
        said = json.loads(os.pread(file, MOST, 0))
        return f"process {int(said['pid'])} on {said['host']} ({said['what']}, since {said['since']})"
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return "another process"
