"""A folder that is the old one or the whole new one, whatever happens while it is written."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sleepc.errors import SleepcError, SleepcWarning, UsageError
from sleepc.output_place import check_folder_place
from sleepc.owned import locked, made_folder

DRAFT, OLD = "sleepc-draft", "sleepc-old"  # ends of names: what is being written, and what is just being replaced
OURS = re.compile(rf"\.(.+)\.[0-9a-f]{{8}}\.({DRAFT}|{OLD})")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
AT_CWD, EXCHANGE = -100, 2  # of renameat2


@contextmanager
def written_beside(target: Path, *, force: bool, mark: str) -> Iterator[Path]:
    """A folder that becomes `target` when the block ends well, and vanishes when it does not. What killed processes
    left next to it is put right first, and said.

    Raises UsageError if `target` exists and is not to be replaced, or has not the file `mark`; SleepcError if the
    disk is full or refuses.
    """
    target = Path(os.path.realpath(target))  # what a link leads to is replaced, and the link stays
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        put_right(target.parent)
        check_free(target, force=force, mark=mark)
        with draft_beside(target) as draft:
            yield draft
            _put(draft, target, force, mark)
    except Exception as error:
        if isinstance(error, SleepcError) or not _is_full(error):
            raise
        raise SleepcError(
            "the disk is full", where=str(target), fix="Nothing was written: free some space, or write elsewhere."
        ) from error


def check_free(target: Path, *, force: bool, mark: str) -> None:
    """Refuse a folder that exists, unless `force`, and a place where none can be written; never replace what has no
    file `mark` and is not empty.
    """
    if not target.exists():
        check_folder_place(target, "-o")
        return
    if not force:
        raise UsageError(f"{target} exists", where="-o", fix="Choose another name, or give --force to replace it.")
    if not (target.is_dir() and ((target / mark).is_file() or not any(target.iterdir()))):
        raise UsageError(
            f"{target} exists and is not one of sleepc's (it has no {mark})", where="-o", fix="Choose another name."
        )
    check_folder_place(target, "-o")


def moved_away(target: Path) -> Path | None:
    """Where a killed process left what stood at `target`; None if it left nothing."""
    names = sorted(target.parent.glob(f".*.{OLD}")) if target.name else []
    return next((path for path in names if _is_of(path, target)), None)


@contextmanager
def draft_beside(target: Path) -> Iterator[Path]:
    """An empty folder next to `target`, locked by this process; whatever is at its path in the end is removed. What a
    killed process left of it, `put_right` removes.
    """
    while True:
        draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}.{DRAFT}")
        with made_folder(draft), locked(draft, wait=True):
            if not draft.exists():
                continue  # another writer took it for a dead one's before it was locked
            try:
                yield draft
            finally:
                _remove(draft)
            return


def _put(draft: Path, target: Path, force: bool, mark: str) -> None:
    """Let `draft` be `target`, and `target`, if there was one, be `draft`. Writers do so one after the other."""
    with locked(target.parent, wait=True):
        check_free(target, force=force, mark=mark)  # it may have come while the draft was written
        if not target.exists():
            draft.rename(target)
        elif not exchanged(draft, target):
            old = draft.with_suffix(f".{OLD}")
            target.rename(old)
            draft.rename(target)
            old.rename(draft)


def exchanged(one: Path, other: Path) -> bool:
    """Swap two paths in one step, so that there is no moment without either; False if the system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None or rename(AT_CWD, os.fsencode(one), AT_CWD, os.fsencode(other), EXCHANGE) == 0:
        return rename is not None
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(other))


def put_right(folder: Path) -> None:
    """Put back what a killed process had moved away, and remove the drafts of processes that are gone."""
    with locked(folder, wait=True) as alone:  # nobody is between two renames
        for old in folder.glob(f".*.{OLD}") if alone else ():
            found = OURS.fullmatch(old.name)
            if found and not (folder / found[1]).exists():
                old.rename(folder / found[1])
                _say(f"{folder / found[1]} is back: a process that was killed had moved it to {old.name}")
            elif found:
                _remove(old)
    for draft in folder.glob(f".*.{DRAFT}"):
        if OURS.fullmatch(draft.name):
            with locked(draft) as dead:
                if dead:
                    _remove(draft)
                    _say(f"removed {draft}, which a process that was killed had left")


def _is_full(error: BaseException | None) -> bool:
    """Did a full disk cause it? A library may have met another error while it cleaned up."""
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    return error is not None and _is_full(error.__cause__ or error.__context__)


def _is_of(path: Path, target: Path) -> bool:
    found = OURS.fullmatch(path.name)
    return found is not None and found[1] == target.name


def _remove(folder: Path) -> None:
    """Remove a folder that another process may be removing too."""
    while folder.exists():
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:
            continue


def _say(text: str) -> None:
    warnings.warn(text, SleepcWarning, stacklevel=2)
