"""Can a file or folder be written there? Tried, and not asked of permissions: before any work, and leaving nothing."""

from __future__ import annotations

import os
import secrets
from contextlib import ExitStack
from pathlib import Path

from sleepc.errors import UsageError
from sleepc.owned import made_folder

ROOM = ".sleepc-on-trial"  # a name next to the target, as long as those that are used while it is written


def check_folder_place(target: Path, where: str) -> None:
    """Can a folder `target` be made, and be moved to its place? Its parents may be missing; it may be there itself.

    Raises UsageError with the system's reason. `where` is the option that names the target.
    """
    try:
        path = Path(os.path.realpath(target))  # what a link leads to is written
        with ExitStack() as made:
            for folder in (*_missing(path.parent), _draft(path.parent, path.name)):
                made.enter_context(made_folder(folder))
    except (OSError, ValueError) as error:  # ValueError: a name that no system has
        raise _refused(target, where, error) from error


def check_folder_inside(target: Path, where: str) -> None:
    """Can files be written into the folder `target`, which may be there? Raises as `check_folder_place`."""
    if not target.exists():
        check_folder_place(target, where)
        return
    try:
        with made_folder(_draft(target.absolute(), "")):
            pass
    except OSError as error:
        raise _refused(target, where, error) from error


def check_file_place(target: Path, where: str) -> None:
    """Can a file `target` be written next to its name and be moved there? Only a file is ever replaced.

    Raises as `check_folder_place`, and if there is not a folder for it.
    """
    path = target.absolute()
    if not path.parent.is_dir():
        fix = "Name a file in a folder that exists."
        raise UsageError(f"cannot write {target}: {path.parent} is not a folder", where=where, fix=fix)
    require_no_other(path, where)
    check_folder_place(path, where)


def require_no_other(target: Path, where: str) -> None:
    """Raises UsageError for a place where something is that is not a file: a folder, a device, a pipe."""
    if os.path.lexists(target) and not target.is_file():
        raise UsageError(f"cannot write {target}: it exists and is not a file", where=where, fix=OTHER)


OTHER = "Choose another place."


def _missing(folder: Path) -> list[Path]:
    """Folders that are not there, outermost first."""
    return [each for each in (*reversed(folder.parents), folder) if not os.path.lexists(each)]


def _draft(folder: Path, name: str) -> Path:
    return folder / f".{name}.{secrets.token_hex(4)}{ROOM}"


def _refused(target: Path, where: str, error: Exception) -> UsageError:
    why = error.strerror if isinstance(error, OSError) else str(error)
    return UsageError(f"cannot write {target}: {why}", where=where, fix=OTHER)
