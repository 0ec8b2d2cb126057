"""A file that is the old one or the whole new one, whatever happens while it is written."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Write beside `path` and rename. Raises OSError where the disk refuses; nothing is left then."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # or the rename may reach the disk before the bytes
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
