"""The JSON that says what is in a folder of ours, with its format and its own hash. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sleepc.errors import SleepcError, UsageError
from sleepc.json_file import read_json

FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$")]
"""A file of the same folder: no path."""


class Strict(BaseModel):
    """Unknown keys are an error: a newer format says so by its version."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Data = TypeVar("Data", bound=Strict)


@dataclass(frozen=True)
class FileKind:
    """What such a file belongs to (`owner`, for people), the newest format of it that is read, its largest size in
    bytes; how its owner is made again (`again`, after an "or"), and what to do if it is damaged.
    """

    owner: str
    newest: int
    most: int
    again: str
    restore: str


def read_sealed(path: Path, kind: FileKind, model: type[Data]) -> tuple[Data, str]:
    """What the file says, and the hash of it (`digest`). Raises UsageError if it is newer, SleepcError if damaged."""
    data = read_json(path, most=kind.most, fix=kind.restore)
    version = data.get("format") if isinstance(data, dict) else None
    if isinstance(version, int) and version > kind.newest:
        raise UsageError(
            f"the {kind.owner} has format {version}, and this sleepc reads format {kind.newest}",
            where=f"written by sleepc {data.get('sleepc', '?')}",
            fix=f"Upgrade sleepc (pip install -U sleepc), or {kind.again}.",
        )
    try:
        return model.model_validate(data), digest(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(p) for p in first["loc"])
        what = f"{place + ': ' if place else ''}{first['msg']}"
        raise SleepcError(f"{path.name} is not valid: {what}", where=str(path), fix=kind.restore) from error
    except (ValueError, RecursionError) as error:  # half of a surrogate pair, which no file can hold
        raise SleepcError(
            f"{path.name} is not valid: {type(error).__name__}", where=str(path), fix=kind.restore
        ) from error


def digest(data: dict[str, Any]) -> str:
    """sha256 of such a file's data, in one spelling, without its own hash."""
    rest = {key: value for key, value in data.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
