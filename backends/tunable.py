"""What may be chosen of how a program runs, and changes nothing that it computes: `sleepc tune` tries it. No torch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from sleepc.errors import UsageError

TRIED = "tried"  # the key of the metadata of a target's option
Setting: TypeAlias = bool | int | str
"""A value of a Tunable, or of a target's option."""
SettingsByName: TypeAlias = Mapping[str, Setting]


@dataclass(frozen=True)
class Tunable:
    """Something of how a program runs that changes how fast it is, and nothing that it computes: the values that are
    tried, the default first. `words` say what it is, for people.
    """

    name: str
    values: tuple[Setting, ...]
    words: str


def available_threads() -> int:
    """OMP_NUM_THREADS, which PyTorch heeds too, or as many as this process may use processors."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isascii() and asked.isdigit() and 0 < int(asked) < 1024:
        return int(asked)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_of(most: int) -> Tunable:
    """The setting `threads`: `most` by default, or powers of two below."""
    fewer = [1 << power for power in range(most.bit_length()) if 1 << power < most]
    return Tunable("threads", (most, *reversed(fewer)), "threads that compute")


def check_settings(name: str, known: Sequence[Tunable], settings: Mapping[str, Setting]) -> None:
    """Raises UsageError for a setting that `name` does not have, a value of another type than its values, or another
    word than these.
    """
    if not isinstance(settings, Mapping):
        raise UsageError(f"settings are a dictionary, and not {settings!r}", where="settings")
    types = {each.name: type(each.values[0]) for each in known}
    for key, value in settings.items():
        if types.get(key) is not type(value):
            fix = f"It has {', '.join(types)}." if types else "It has none."
            raise UsageError(f"{name} has no setting {key}={value}", where="settings", fix=fix)
        values = next(each.values for each in known if each.name == key)
        if isinstance(value, str) and value not in values:
            fix = f"One of: {', '.join(map(str, values))}."
            raise UsageError(f"{name} has no setting {key}={value}", where="settings", fix=fix)
