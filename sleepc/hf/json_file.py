"""The JSON files beside a model's weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sleepc.errors import UsageError


def read_object(path: Path) -> dict[str, Any]:
    """A file's JSON object; empty where there is no file. Raises UsageError for a file that is damaged."""
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise ValueError("it is no JSON object")
    except (ValueError, OSError, RecursionError) as error:
        raise UsageError(
            f"cannot read {path.name}: {error}", where=str(path), fix="Take it from the original model."
        ) from error
    return data
