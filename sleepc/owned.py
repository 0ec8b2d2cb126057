"""Whose is a draft? Its writer removes it, and keeps it locked; what a killed process leaves is locked by nobody."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Lock a file or folder; is it ours now? Without `wait` not if another has it, and never if the file system
    has no locks. The system takes it back when the process ends, however that ends.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    try:
        yield _lock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB) and _is_at(path, descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def made_folder(path: Path) -> Iterator[None]:
    """A folder made at `path` (an OSError if it cannot be), which goes in the end if it is there and empty. A signal
    that comes when it is just made does not leave it behind.
    """
    try:
        path.mkdir()
    except OSError:
        raise  # it was not made
    except BaseException:
        _remove_empty(path)
        raise
    try:
        yield
    finally:
        _remove_empty(path)


def _remove_empty(path: Path) -> None:
    try:
        path.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
            raise


def _lock(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how)
    except OSError:
        return False
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    """Or has another process removed it between our opening and our locking?"""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False
