"""Versions of installed packages, which are not imported for it."""

from __future__ import annotations

import re
from importlib import metadata


def version_of(package: str) -> str | None:
    """The installed version of a package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def numbers(version: str) -> tuple[int, ...]:
    """1.32.0rc1 -> (1, 32, 0)."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
