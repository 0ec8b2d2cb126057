"""How far ONNX Runtime is from the eager backend, and what each precision allows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from sleepc.backends.onnx.check.reading import Found
from sleepc.backends.onnx.check.report import Row

Array = npt.NDArray[Any]
ERRORS = {"fp32": 1e-3, "fp16": 2e-2, "int8": 1e-3, "int4": 1e-3}
"""Largest error of a logit over the largest logit, and of a state's value over the state's largest."""


def compare(check: str, found: Found, expected: Found, precision: str) -> list[Row]:
    """The rows of one check."""
    rows = []
    if precision in ERRORS:
        bound = ERRORS[precision]
        text = f"{len(expected.logits)} tokens"
        rows.append(Row(check, "logits", relative(found.logits, expected.logits), bound, text))
        if expected.state:
            worst, name = _worst(found.state, expected.state)
            rows.append(Row(check, "state", worst, bound, f"{len(expected.state)} arrays, {name} the furthest"))
    return rows


def relative(found: Array, expected: Array) -> float:
    """The largest |found - expected| over the largest |expected|; inf where one is not finite or shapes differ."""
    if found.shape != expected.shape:
        return math.inf
    if not found.size:
        return 0.0
    gap = found - expected  # in their own precision and in place: logits of a large vocabulary are large
    error = float(np.abs(gap, out=gap).max())
    scale = float(max(expected.max(), -expected.min()))
    if not math.isfinite(error):
        return math.inf
    return error / scale if scale else (math.inf if error else 0.0)


def _worst(found: Mapping[str, Array], expected: Mapping[str, Array]) -> tuple[float, str]:
    """The largest relative error of all arrays, and whose it is. Counters and flags have to be the same."""
    worst = (0.0, "none")
    for name, value in expected.items():
        if name not in found:
            return math.inf, name
        exact = value.dtype.kind != "f"
        error = (0.0 if np.array_equal(found[name], value) else math.inf) if exact else relative(found[name], value)
        worst = max(worst, (error, name))
    return worst
