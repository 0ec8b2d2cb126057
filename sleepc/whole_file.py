"""A file that is the old one or the whole new one, whatever happens while it is written."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

from sleepc.output_place import require_no_other
from sleepc.owned import locked

PART = re.compile(r"\.(.+)\.[0-9a-f]{8}\.part")


def write_whole(path: Path, data: bytes) -> None:
    """Write next to `path` and rename. Raises UsageError if a device, a pipe or a folder is there, OSError if the disk
    refuses; nothing is left then, and what a killed process left of an earlier try is removed.
    """
    require_no_other(path, "")
    _remove_left(path)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as file, locked(part, wait=True):
            if not part.exists():  # another writer took it for a dead one's before it was locked
                return write_whole(path, data)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # or the rename may reach the disk before the bytes
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _remove_left(path: Path) -> None:
    for part in path.parent.glob(".*.part"):
        found = PART.fullmatch(part.name)
        if found and found[1] == path.name:
            with locked(part) as dead:
                if dead:
                    part.unlink(missing_ok=True)
