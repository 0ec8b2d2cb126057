"""How far ONNX Runtime is from the eager backend: logits, and the state as its parts allow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from sleepc.backends.check.measure import ERRORS, Array, relative
from sleepc.backends.check.reading import Found
from sleepc.backends.report import Figure
from sleepc.ir.states import StateSpec, find_state, with_role
from sleepc.passes.rewrite.rounded import FORMS, OCTAVE

States = Sequence[StateSpec]
Arrays = Mapping[str, Array]
MOST = {form.dtype: form.most for form in FORMS.values()} | {torch.int16: round(OCTAVE / math.log(2))}
"""Of whole numbers that vectors are rounded to; so many steps of a peak are a factor e."""
FEW = {form.dtype for form in FORMS.values()}
TIE = 1e-4  # of scores: as much as steps and sums in another order make of one


def compare(check: str, found: Found, expected: Found, precision: str, states: States) -> list[Figure]:
    """The rows of one check; `states` are all of the program's, by their full names."""
    rows = []
    if precision in ERRORS:
        bound = ERRORS[precision]
        text = f"{len(expected.logits)} tokens"
        rows.append(Figure(check, "logits", relative(found.logits, expected.logits), bound, text))
        if expected.state:
            read = [spec for spec in states if spec.name in expected.state]
            assert len(read) == len(expected.state), "a state that the program does not have"
            alike = before_a_tie(found.state, expected.state, read)
            worst, name = _worst(found.state, expected.state, alike)
            text = f"{len(alike)} of {len(read)} arrays, {name} the furthest"
            rows.append(Figure(check, "state", worst, bound, text))
    return rows


def before_a_tie(found: Arrays, expected: Arrays, states: States) -> list[StateSpec]:
    """The states that are to be the same: all, but for those of blocks from the first one on that keeps other pairs of
    the same scores. Of pairs whose scores differ by less than a rounding either may be kept.
    """
    blocks: dict[int, list[StateSpec]] = {}
    for spec in states:
        if spec.block is not None:
            blocks.setdefault(spec.block, []).append(spec)
    first = min((i for i, block in blocks.items() if _ties(found, expected, block)), default=None)
    return [spec for spec in states if first is None or spec.block is None or spec.block < first]


def _ties(found: Arrays, expected: Arrays, block: States) -> bool:
    """Does a block keep other pairs, whose scores are the same but for a rounding, in whatever order?"""
    tokens, scores = (find_state(block, "kept", part) for part in ("token", "score"))
    if tokens is None or scores is None or tokens.name not in found or scores.name not in found:
        return False
    a, b = (np.sort(each[scores.name].astype(np.float64), axis=1) for each in (found, expected))
    near = a.shape == b.shape and bool((np.abs(a - b) <= TIE).all())
    return near and not np.array_equal(found[tokens.name], expected[tokens.name])


def _worst(found: Arrays, expected: Arrays, states: States) -> tuple[float, str]:
    """The largest relative error of all arrays, and whose it is. Counters and flags have to be the same, and numbers
    that slots hold in few bits within a step; memories, into which such pairs are written when they are dropped, too.
    """
    worst = (0.0, "none")
    steps = {spec.block: 1 / MOST[spec.dtype] for spec in states if spec.role == "kept" and spec.dtype in FEW}
    for spec in states:
        if spec.name not in found:
            return math.inf, spec.name
        value, other = expected[spec.name], found[spec.name]
        if value.dtype.kind == "f":
            error = relative(other, value, [expected[each] for each in _measured_with(spec, states)])
            if spec.role == "memory":
                error = max(error - steps.get(spec.block, 0.0), 0.0)
        elif spec.role == "kept" and spec.dtype in MOST and other.shape == value.shape:
            error = _beyond_a_step(other, value, spec.dtype)
        else:
            error = 0.0 if np.array_equal(other, value) else math.inf
        worst = max(worst, (error, spec.name))
    return worst


def _measured_with(spec: StateSpec, states: States) -> list[str]:
    """For a tensor of a memory all tensors of that memory. They are sums of each other's values: one that has come
    close to zero (a momentum, when there is nothing left to learn) holds what rounding has left of the others.
    """
    roles = [role for role in ("memory", "start") if role == spec.role]
    return [each.name for each in with_role(states, *roles) if each.block == spec.block]


def _beyond_a_step(found: Array, expected: Array, dtype: torch.dtype) -> float:
    """Of slots in few bits: by how much more than one step they differ, as a share of MOST. A number between two whole
    ones becomes either.
    """
    a, b = found.astype(np.int64), expected.astype(np.int64)
    parts = [(a // 16, b // 16), (a % 16, b % 16)] if dtype == torch.uint8 else [(a, b)]
    furthest = max((int(np.abs(a - b).max()) for a, b in parts if a.size), default=0)
    return max(furthest - 1, 0) / MOST[dtype]
