"""Is a checkpoint quantised, and who says so? sleepc rewrites floating-point models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sleepc.errors import Refusal

SAYING = ("quantization_config", "quantization", "compression_config")  # keys of configurations
NAMING = ("quant_method", "quant_algo", "quant_type", "mode")
BESIDE = "*quant*config*.json"  # files next to the configuration: they say how, the tensors say whether
QUANTISED_DTYPES = ("F8_", "F6_", "F4", "U16", "U32", "U64")  # names of safetensors' dtypes, or how they begin


def quantised(what: str, where: Path) -> Refusal:
    """The refusal of a quantised checkpoint: `what` was found, and where."""
    return Refusal(
        "QUANTISED",
        f"the checkpoint is quantised ({what}), and sleepc rewrites floating-point models",
        where=str(where),
        fix="Convert the unquantised checkpoint; `sleepc export` quantises the result.",
    )


def refuse_quantised(config: dict[str, Any], folder: Path) -> None:
    """Raise Refusal if the configuration, or one inside it, says how its weights are quantised."""
    for place, found in _sayings(config, ""):
        raise quantised(f"{_method(found)}, says {place} in config.json", folder)


def said_beside(folder: Path) -> str:
    """The names of files in `folder` that are about quantisation, for a message: "" if there are none."""
    names = sorted(path.name for path in folder.glob(BESIDE))
    return f"; next to it: {', '.join(names)}" if names else ""


def _sayings(config: dict[str, Any], place: str) -> Iterator[tuple[str, Any]]:
    """(place, value) of all that is said about quantisation, at any depth of a configuration."""
    for key, value in config.items():
        if key in SAYING and value:
            yield place + key, value
        for inner in value if isinstance(value, list) else [value]:
            if key not in SAYING and isinstance(inner, dict):
                yield from _sayings(inner, f"{place}{key}.")


def _method(found: Any) -> str:
    if not isinstance(found, dict):
        return "unknown"
    named = next((str(found[key]) for key in NAMING if found.get(key)), None)
    bits = f"{found['bits']} bits" if found.get("bits") else None
    return named or bits or "unknown"
