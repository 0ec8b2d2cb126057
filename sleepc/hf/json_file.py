"""The JSON files next to a model's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sleepc.errors import SleepcError, UsageError
from sleepc.hf.present import is_there
from sleepc.json_file import read_json

MOST = 256 << 20  # bytes; vocabularies are large


def read_object(path: Path) -> dict[str, Any]:
    """A file's JSON object; empty if there is no file. Raises UsageError if it is damaged, or has a key twice."""
    if not is_there(path):
        return {}
    fix = "Take it from the original model."
    try:
        data = read_json(path, most=MOST, fix=fix)
    except SleepcError as error:
        raise UsageError(f"cannot read {path.name}: {error.what}", where=str(path), fix=error.fix) from error
    if not isinstance(data, dict):
        raise UsageError(f"cannot read {path.name}: it is not a JSON object", where=str(path), fix=fix)
    return data
