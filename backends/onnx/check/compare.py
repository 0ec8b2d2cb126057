"""How far ONNX Runtime is from the eager backend: logits, and the state as its parts allow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from sleepc.backends.onnx.check.measure import ERRORS, Array, relative
from sleepc.backends.onnx.check.reading import Found
from sleepc.backends.report import Figure
from sleepc.passes.rewrite.rounded import FORMS, OCTAVE
from sleepc.runtime.steps import KEPT

if TYPE_CHECKING:
    from sleepc.ir.states import StateSpec

Memories = Mapping[str, Sequence[str]]
TOKENS, SCORES = f".{KEPT}token", f".{KEPT}score"  # of what a block's slots hold
MOST = {form.dtype: form.most for form in FORMS.values()} | {torch.int16: round(OCTAVE / math.log(2))}
"""Of whole numbers that vectors are rounded to; so many steps of a peak are a factor e."""
TIE = 1e-4  # of scores: as much as steps and sums in another order make of one


def compare(check: str, found: Found, expected: Found, precision: str, memories: Memories) -> list[Figure]:
    """The rows of one check; `memories` says which states are measured together."""
    rows = []
    if precision in ERRORS:
        bound = ERRORS[precision]
        text = f"{len(expected.logits)} tokens"
        rows.append(Figure(check, "logits", relative(found.logits, expected.logits), bound, text))
        if expected.state:
            alike = before_a_tie(found.state, expected.state)
            worst, name = _worst(found.state, alike, memories)
            text = f"{len(alike)} of {len(expected.state)} arrays, {name} the furthest"
            rows.append(Figure(check, "state", worst, bound, text))
    return rows


def memories_of(specs: Iterable[StateSpec]) -> Memories:
    """For each tensor of a memory all tensors of that memory. They are sums of each other's values: one that has come
    close to zero (a momentum, when there is nothing left to learn) holds what rounding has left of the others.
    """
    groups: dict[tuple[int | None, str], list[str]] = {}
    for spec in specs:
        if spec.role in ("memory", "start"):
            groups.setdefault((spec.block, spec.role), []).append(spec.name)
    return {name: group for group in groups.values() for name in group}


def before_a_tie(found: Mapping[str, Array], expected: Mapping[str, Array]) -> dict[str, Array]:
    """The arrays of `expected` that are to be the same: all, but for those of blocks from the first one on that keeps
    other pairs of the same scores. Of pairs whose scores differ by less than a rounding either may be kept.
    """
    tied = [
        int(name.removesuffix(TOKENS))
        for name, tokens in expected.items()
        if name.endswith(TOKENS)
        and not np.array_equal(found.get(name, tokens), tokens)
        and _near(found, expected, name.removesuffix(TOKENS) + SCORES)
    ]
    first = min(tied, default=None)
    blocks = {name: name.partition(".")[0] for name in expected}
    return {n: x for n, x in expected.items() if first is None or not blocks[n].isdigit() or int(blocks[n]) < first}


def _near(found: Mapping[str, Array], expected: Mapping[str, Array], name: str) -> bool:
    """Are the scores of all slots the same, but for a rounding, in whatever order? Each row by itself."""
    a, b = (np.sort(each[name].astype(np.float64), axis=1) for each in (found, expected))
    return a.shape == b.shape and bool((np.abs(a - b) <= TIE).all())


def _worst(found: Mapping[str, Array], expected: Mapping[str, Array], memories: Memories) -> tuple[float, str]:
    """The largest relative error of all arrays, and whose it is. Counters and flags have to be the same, and whole
    numbers that were rounded within a step.
    """
    worst = (0.0, "none")
    for name, value in expected.items():
        if name not in found:
            return math.inf, name
        if value.dtype.kind == "f":
            error = relative(found[name], value, [expected[other] for other in memories.get(name, ())])
        elif value.dtype.kind in "iu" and value.dtype.itemsize < 4 and found[name].shape == value.shape:
            error = _beyond_a_step(found[name], value)
        else:
            error = 0.0 if np.array_equal(found[name], value) else math.inf
        worst = max(worst, (error, name))
    return worst


def _beyond_a_step(found: Array, expected: Array) -> float:
    """Of slots in few bits: by how much more than one step they differ, as a share of MOST. A number between two whole
    ones becomes either.
    """
    a, b = found.astype(np.int64), expected.astype(np.int64)
    parts = [(a // 16, b // 16), (a % 16, b % 16)] if expected.dtype == np.uint8 else [(a, b)]
    furthest = max((int(np.abs(a - b).max()) for a, b in parts if a.size), default=0)
    return max(furthest - 1, 0) / MOST[torch.from_numpy(expected[:0]).dtype]
