"""Numbers that a person gives from Python: of the right kind, or a clear error."""

from __future__ import annotations

from typing import Any

import numpy as np

from sleepc.errors import UsageError


def whole(value: Any, what: str, fix: str = "") -> int:
    """A whole number, numpy's too. Raises UsageError for anything else: true and false, 2.0, "2"."""
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return int(value)
    raise UsageError(f"{what} {value!r} is not a whole number", fix=fix or f"give a number such as {what}=1")


def real(value: Any, what: str) -> float:
    """A number. Raises UsageError for anything else: true and false, None, "0.5"."""
    if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool):
        return float(value)
    raise UsageError(f"{what} {value!r} is not a number", fix=f"give a number such as {what}=1.0")
