"""Recipes as YAML files: every option is a key, `overrides` is a list of options for some layers."""

from __future__ import annotations

import codecs
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any, ClassVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from sleepc.errors import SleepcError, UsageError
from sleepc.held_file import HeldFile
from sleepc.json_file import parse_json
from sleepc.recipe import Budgets, make_recipe

MAX_BYTES = 1 << 20
TOML = re.compile(r"^\s*(\[+[\w.\"-]+\]+\s*$|[\w\"-]+\s*=)", re.MULTILINE)


class _Reader(yaml.SafeLoader):
    """YAML 1.2's plain values: in 1.1, `010` is 8, `1:3` is 63, `no` is false, and a key given twice counts once."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]  # as PyYAML has it

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """As in YAML's own words: keys are unique."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else "")
        return super().construct_mapping(node, deep)


def _decimal(loader: _Reader, node: yaml.ScalarNode) -> int:
    return int(node.value)


_PLAIN = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    "int": (r"[-+]?[0-9]+", [*"-+0123456789"]),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        [*"-+.0123456789"],
    ),
}
for _name, (_pattern, _first) in _PLAIN.items():
    _Reader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), _first)
_Reader.add_constructor("tag:yaml.org,2002:int", _decimal)


def read_recipe(path: Path) -> dict[str, Any]:
    """The options that a recipe file gives, checked; those that it leaves out are not there.

    Raises UsageError for a file that is not there, is no YAML mapping, gives a key twice, or has keys or values that do
    not exist; an unknown key comes with the nearest known one.
    """
    text = _text(path)
    try:
        options = yaml.load(text, _Reader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: a number of thousands of digits
        place = getattr(error, "problem_mark", None)
        line = f"line {place.line + 1}: " if place else ""
        what = getattr(error, "problem", None) or "not YAML"
        raise UsageError(f"{line}{what}", where=str(path), fix=_for_what_it_is(path, text)) from None
    if options is None:
        fix = "Write one `option: value` on a line, or leave --recipe out for the defaults."
        raise UsageError("the recipe has no options", where=str(path), fix=fix)
    if not isinstance(options, dict) or not all(isinstance(key, str) for key in options):
        what, fix = "a recipe is a mapping of options to values", _for_what_it_is(path, text)
        raise UsageError(what, where=str(path), fix=fix)
    keep = options.get("keep")
    if isinstance(keep, dict) and isinstance(keep.get("budgets"), str) and keep["budgets"] not in ("auto", "equal"):
        options["keep"] = {**keep, "budgets": read_budgets(path.parent / keep["budgets"])}
    make_recipe(options, where=str(path))
    return options


class _Budgets(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    budgets: Budgets


def read_budgets(path: Path) -> tuple[tuple[int, ...], ...]:
    """The slots of every KV head of every layer, of a file {"budgets": [[..], ..]} as `sleepc calibrate` writes it.

    Raises UsageError for a file that is not there or is none of these.
    """
    fix = 'Write {"budgets": [[slots of each KV head], one list for each layer]}.'
    try:
        file = HeldFile(path)
        if file.size > MAX_BYTES:
            raise UsageError(f"{file.size} bytes are too many for a file of budgets", where=str(path), fix=fix)
        text = file.read(0, file.size).removeprefix(codecs.BOM_UTF8)
        parse_json(text, what="the file of budgets", where=str(path), fix=fix)  # no key twice
        return _Budgets.model_validate_json(text).budgets
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        what = f"not a file of budgets: {place + ': ' if place else ''}{first['msg']}"
        raise UsageError(what, where=str(path), fix=fix) from None
    except SleepcError as error:
        raise UsageError(error.what, where=str(path), fix=fix) from error


def _text(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            what = f"{size} bytes are too many for a recipe"
            raise UsageError(what, where=str(path), fix="Give a YAML file.")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the recipe: {error}", where=str(path), fix="Give a YAML file.") from None


def _for_what_it_is(path: Path, text: str) -> str:
    if path.suffix.lower() == ".toml" or TOML.search(text):
        return "This looks like TOML, and recipes are YAML: `window: 8` instead of `window = 8`."
    return "Write one `option: value` on a line. For example:  strategy: parallel"
