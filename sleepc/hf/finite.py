"""Numbers in a configuration that are not finite: JSON has none, and Python reads and writes them all the same."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sleepc.errors import UsageError
from sleepc.hf.unbuildable import FIX

TAG = "__float__"  # transformers writes {"__float__": "Infinity"}
NUMBERS = {name: float(name) for name in ("NaN", "Infinity", "-Infinity")}


def check_finite(config: dict[str, Any], kind: Any, folder: Path) -> None:
    """Raise UsageError, with the fields, for NaN and infinity in a configuration of class `kind`, unless that class has
    the same by default, as a limit that does not limit.
    """
    said = [f"{place}: {number}" for place, number in _odd(config, kind)]
    if said:
        what = f"config.json says {', '.join(said)}, and the numbers of a model are finite"
        raise UsageError(what, where=str(folder), fix=FIX)


def _odd(config: dict[str, Any], kind: Any) -> Iterator[tuple[str, str]]:
    parts: dict[str, Any] = getattr(kind, "sub_configs", {})
    for key, value in config.items():
        if key in parts and isinstance(value, dict) and TAG not in value:
            yield from ((f"{key}.{place}", number) for place, number in _odd(value, parts[key]))
            continue
        usual = {number for _, number in _not_finite(getattr(kind, key, None), key)}
        yield from ((place, number) for place, number in _not_finite(value, key) if number not in usual)


def _not_finite(value: Any, place: str) -> Iterator[tuple[str, str]]:
    """(place, number as Python's JSON has it) of all that are not finite."""
    if isinstance(value, dict) and value.get(TAG) in NUMBERS:
        value = NUMBERS[value[TAG]]
    if isinstance(value, float) and not math.isfinite(value):
        yield place, json.dumps(value)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _not_finite(inner, f"{place}.{key}")
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from _not_finite(inner, f"{place}[{i}]")
