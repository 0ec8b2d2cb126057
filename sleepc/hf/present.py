"""Is a file of a model's folder there?"""

from __future__ import annotations

import os
from pathlib import Path

from sleepc.errors import UsageError


def is_there(path: Path) -> bool:
    """Whether there is a file. Raises UsageError for what has its name and is none: a link that leads nowhere, a
    folder, a pipe. Taken for a missing file, the model would be read without it, and nobody would know.
    """
    if path.is_file():
        return True
    if not os.path.lexists(path):
        return False
    what = "a link that leads to no file" if path.is_symlink() else "no file"
    raise UsageError(f"{path.name} is {what}", where=str(path), fix="Fetch it again, or remove it.")
