"""The processor of this machine, as Linux describes it. Imports no torch."""

from __future__ import annotations

import platform
from collections.abc import Collection
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
SPELLED = {"AMD64": "x86_64", "arm64": "aarch64"}  # by Windows and macOS


def architecture() -> str:
    """x86_64, aarch64 …"""
    machine = platform.machine()
    return SPELLED.get(machine, machine)


def processor_facts() -> dict[str, str]:
    """What Linux says of the first processor; nothing elsewhere."""
    try:
        first = CPUINFO.read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def processor_features() -> frozenset[str]:
    """What this processor can do, by Linux's names: avx2, fma … Empty where that is not said."""
    facts = processor_facts()
    return frozenset((facts.get("flags") or facts.get("Features") or "").split())


def unfit(machine: str, features: Collection[str]) -> str | None:
    """Why code for a `machine` (x86_64, aarch64 …) whose processor has all `features` cannot run here: it would end the
    process. None if it can, or the system does not say what its processor has.
    """
    if machine != architecture():
        return f"the code is for processors of {machine}, and this one is {architecture()}"
    here = processor_features()
    missing = set(features) - here
    if here and missing:
        return f"the code needs a processor with {some(missing)}, which this one does not have"
    return None


def some(names: Collection[str], most: int = 8) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(sorted(names)[:most]) + more
