"""How far an array is from what it should be, and what each precision allows. Without PyTorch: `verify` of an export
runs where there is none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
ERRORS = {"fp32": 1e-3, "fp16": 2e-2, "int8": 1e-3, "int4": 1e-3, "source": 1e-3}
"""Largest error of a logit over the largest logit, and of a state's value over the state's largest."""


def relative(found: Array, expected: Array, others: Iterable[Array] = ()) -> float:
    """The largest |found - expected| over the largest |expected|, `others` included; inf if one is not finite or
    shapes differ.
    """
    if found.shape != expected.shape:
        return math.inf
    if not found.size:
        return 0.0
    gap = found - expected  # in their own precision and in place: logits of a large vocabulary are large
    error = float(np.abs(gap, out=gap).max())
    scale = max(float(max(x.max(), -x.min())) for x in (expected, *others))
    if not math.isfinite(error):
        return math.inf
    return error / scale if scale else (math.inf if error else 0.0)
