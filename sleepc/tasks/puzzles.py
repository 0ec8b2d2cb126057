"""All puzzles by name, and their settings as a person gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from sleepc.errors import UsageError
from sleepc.tasks.associative import Associative
from sleepc.tasks.babilong import BabiLong
from sleepc.tasks.bigrams import Bigrams
from sleepc.tasks.depo import Depo
from sleepc.tasks.gsm_symbolic import GsmSymbolic
from sleepc.tasks.gsm_worded import GsmWorded
from sleepc.tasks.khop import KHop
from sleepc.tasks.needle import MultiKey, MultiQuery, MultiValue, Needle
from sleepc.tasks.ngram import NGram
from sleepc.tasks.puzzle import Puzzle
from sleepc.tasks.rule110 import Rule110
from sleepc.tasks.tracking import Tracking

Settings = dict[str, int | tuple[int, ...]]
PUZZLES: Mapping[str, type[Puzzle]] = {
    "rule110": Rule110,
    "khop": KHop,
    "needle": Needle,
    "multikey": MultiKey,
    "multivalue": MultiValue,
    "multiquery": MultiQuery,
    "tracking": Tracking,
    "depo": Depo,
    "ngram": NGram,
    "babilong": BabiLong,
    "associative": Associative,
    "bigrams": Bigrams,
    "gsm-symbolic": GsmSymbolic,
    "gsm-worded": GsmWorded,
}


def make_puzzle(name: str, settings: Sequence[str] = ()) -> Puzzle:
    """The puzzle `name` (one of PUZZLES) with settings as `width=8` or `steps=1,2`. Raises UsageError for others."""
    puzzle: Puzzle = with_settings(PUZZLES[name], name, settings)
    return puzzle


def with_settings(kind: Any, name: str, settings: Sequence[str]) -> Any:
    """An object of the class `kind`, whose fields are settings, with those that are given. See make_puzzle."""
    defaults = settings_of(kind())
    found: Settings = {}
    for setting in settings:
        key, _, value = setting.partition("=")
        numbers = tuple(int(part) for part in value.split(",") if part.isascii() and part.isdigit() and len(part) < 10)
        several = isinstance(defaults.get(key), tuple)
        if key not in defaults or len(numbers) != value.count(",") + 1 or (len(numbers) > 1 and not several):
            known = ", ".join(f"{k}={spell_setting(v)}" for k, v in defaults.items())
            raise UsageError(f"{name} cannot be set {setting!r}", where="--set", fix=f"Its settings are {known}.")
        found[key] = numbers if several else numbers[0]
    return kind(**found)


def settings_of(puzzle: object) -> Settings:
    """The settings by name."""
    return {field.name: getattr(puzzle, field.name) for field in fields(puzzle)}  # type: ignore[arg-type]


def spell_setting(value: int | tuple[int, ...]) -> str:
    """A setting as it is given.

    >>> spell_setting((1, 2, 4))
    '1,2,4'
    """
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
