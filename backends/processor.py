"""The processor of this machine, as Linux describes it. Imports no torch."""

from __future__ import annotations

import platform
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
