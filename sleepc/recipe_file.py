"""Recipes as YAML files: every option is a key, `overrides` is a list of options for some layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sleepc.errors import UsageError
from sleepc.recipe import make_recipe

MAX_BYTES = 1 << 20


def read_recipe(path: Path) -> dict[str, Any]:
    """The options that a recipe file gives, checked; those that it leaves out are not there.

    Raises UsageError for a file that is not there, is no YAML mapping, or has keys or values that do not exist; an
    unknown key comes with the nearest known one.
    """
    import yaml

    try:
        size, text = path.stat().st_size, ""
        if size <= MAX_BYTES:
            text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the recipe: {error}", where=str(path), fix="Give a YAML file.") from None
    if size > MAX_BYTES:
        raise UsageError(f"a recipe of {size} bytes is no recipe", where=str(path), fix="Give a YAML file of options.")
    try:
        options = yaml.safe_load(text)
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        line = f"line {place.line + 1}: " if place else ""
        what = getattr(error, "problem", None) or "not YAML"
        raise UsageError(f"{line}{what}", where=str(path), fix="Write one `option: value` on a line.") from None
    if not isinstance(options, dict) or not all(isinstance(key, str) for key in options):
        raise UsageError(
            "a recipe is a mapping of options to values",
            where=str(path),
            fix="For example:  strategy: parallel",
        )
    make_recipe(options, where=str(path))
    return options
