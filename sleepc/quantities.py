"""Quantities as people write them: 2GiB, 3%."""

from __future__ import annotations

import re

from sleepc.errors import UsageError

BYTES = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def bytes_of(text: str, where: str) -> int:
    """2GiB, 500MB, 1000 -> bytes. Raises UsageError for anything else."""
    number, unit = number_and_unit(text)
    if unit not in BYTES or not number:
        raise UsageError(
            f"cannot read {text!r}", where=where, fix=f"Give a number with a unit: 2GiB ({', '.join(list(BYTES)[1:])})."
        )
    return max(int(number * BYTES[unit]), 1)


def share_of(text: str, where: str) -> float:
    """3%, 0.03 -> 0.03. Raises UsageError for anything else."""
    number, unit = number_and_unit(text)
    if unit not in ("", "%") or not number:
        raise UsageError(f"cannot read {text!r}", where=where, fix="Give a share: 3%, or 0.03.")
    return number / 100 if unit else number


def number_and_unit(text: str) -> tuple[float, str]:
    """A number that is not negative and what stands behind it; (0, "?") for anything else."""
    found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?) ?([A-Za-z]{0,3}|%)", text, re.ASCII)
    return (float(found[1]), found[2]) if found else (0.0, "?")
