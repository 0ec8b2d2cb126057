"""JSON: of files that may be damaged, where every fault is one error with its place; and of any numbers. Imports no
torch.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

from sleepc.errors import SleepcError
from sleepc.held_file import HeldFile

SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
SHOWN = 80  # characters of a key


class KeyTwice(ValueError):
    """An object has a key twice: readers differ in which they take."""


def read_json(path: Path, *, most: int, fix: str) -> Any:
    """What stands in a JSON file of `most` bytes or less. Raises SleepcError with `fix` if it cannot be read."""
    file = HeldFile(path)
    if file.size > most:
        raise SleepcError(f"{path.name} is too large to be one", where=str(path), fix=fix)
    return parse_json(file.read(0, file.size), what=path.name, where=str(path), fix=fix)


def parse_json(data: bytes, *, what: str, where: str, fix: str) -> Any:
    """What a JSON text says. Raises SleepcError if it is not JSON, has a key twice, is nested deeper than anything of
    ours, or holds texts that no file can hold (half of a pair of surrogates).
    """
    try:
        found = json.loads(data.decode(), object_pairs_hook=_by_key)
        if SURROGATE.search(data):
            json.dumps(found, ensure_ascii=False).encode()
    except KeyTwice as error:
        raise SleepcError(f"{what} has the key {error} twice: which is meant?", where=where, fix=fix) from error
    except ValueError as error:
        raise SleepcError(f"{what} is not JSON: {error}", where=where, fix=fix) from error
    except RecursionError as error:
        raise SleepcError(f"{what} is nested too deep", where=where, fix=fix) from error
    return found


def _by_key(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a JSON text."""
    found = dict(pairs)
    if len(found) < len(pairs):
        first, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise KeyTwice(ascii(first[:SHOWN]))
    return found


def json_text(data: Any, indent: int | None = None) -> str:
    """Plain data as JSON: numbers that are not finite, which JSON does not have, become null."""
    return json.dumps(_finite(data), indent=indent, allow_nan=False)


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
