"""Memory in large pages (2 MiB): a processor that reads all weights for a token looks up fewer. Linux only."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sleepc.errors import SleepcError

SIZE = 2 << 20
COLLAPSE = 25  # of madvise, since Linux 6.1
LIBC = ctypes.CDLL(None, use_errno=True)
MAPS = Path("/proc/self/maps")
CHOICE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
Range = tuple[int, int]


def large_pages_here() -> bool:
    """Can a process have them where it asks, and only there?"""
    release = [int(part) for part in platform.release().split("-")[0].split(".")[:2] if part.isdigit()]
    return sys.platform == "linux" and release >= [6, 1] and CHOICE.is_file() and "[madvise]" in CHOICE.read_text()


@contextmanager
def in_large_pages() -> Iterator[None]:
    """What is allocated within, and kept, is moved into large pages at the end, as far as it fills them: some tenths of
    a second, or seconds, for each GB. Raises SleepcError if the kernel gives none.
    """
    before = _anonymous()
    yield
    new = [part for each in _anonymous() for part in _without(each, before)]
    whole = [(-(-start // SIZE) * SIZE, end // SIZE * SIZE) for start, end in new]
    asked = [each for each in whole if each[0] < each[1]]
    failed = [_collapse(*each) for each in asked]
    if asked and all(failed):
        raise SleepcError(f"no memory in large pages: {os.strerror(failed[0])}", fix="Run it with pages=small.")


def _collapse(start: int, end: int) -> int:
    """0, or the number of the error."""
    if LIBC.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), COLLAPSE) == 0:
        return 0
    return ctypes.get_errno()


def _anonymous() -> list[Range]:
    """Where the process's own memory is, without files and stacks."""
    found = []
    for line in MAPS.read_text().splitlines():
        place, rights, _, _, inode, *name = line.split(maxsplit=5)
        if rights == "rw-p" and inode == "0" and name in ([], ["[heap]"]):
            start, end = (int(each, 16) for each in place.split("-"))
            found.append((start, end))
    return found


def _without(part: Range, others: list[Range]) -> list[Range]:
    """What is left of a range. `others` are in order."""
    found, (start, end) = [], part
    for low, high in others:
        if low < end and high > start:
            found.append((start, min(low, end)))
            start = max(start, high)
    return [each for each in (*found, (start, end)) if each[0] < each[1]]
