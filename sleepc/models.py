"""What the user names as MODEL: a checkpoint, and nothing that sleepc has made."""

from __future__ import annotations

import os
from pathlib import Path

from sleepc.backends.table import exporter_of
from sleepc.errors import UsageError
from sleepc.hf.resolve import Checkpoint, resolve
from sleepc.progress import Progress


def find_model(model: str | Path, progress: Progress) -> Checkpoint:
    """The checkpoint that `model` names: see hf.resolve. Raises UsageError for an export, too."""
    if isinstance(model, str | os.PathLike) and exporter_of(path := Path(model).expanduser()) is not None:
        raise UsageError(f"{path} is a sleepc export, not a model", fix="Name the original model.")
    return resolve(model, progress)
