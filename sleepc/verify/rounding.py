"""Where rounding decides: layers that choose by their numbers, as experts by rank, choose others in half precision, and
some models make more of what is rounded than others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch

from sleepc.ir.graph import Graph
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.states import with_role
from sleepc.ir.types import TensorType, TupleType
from sleepc.passes.adapt.retype import Retype
from sleepc.passes.analysis.dependence import find_dependence
from sleepc.passes.base import Stage
from sleepc.passes.rewrite.kept_pairs import slot_form
from sleepc.passes.runner import run_stages
from sleepc.verify.original import Original
from sleepc.verify.report import Check
from sleepc.verify.subject import Subject

NEAR = 10  # times a tolerance: what float32 may miss it by, if float64 does not miss its own


def explained(program: ProgramGraphs, wrong: Sequence[Check]) -> tuple[torch.dtype, str] | None:
    """In which dtype what is wrong is to be measured again, and what rounding does in the program's own; None if
    rounding does not explain it: it is not finite, or too far off.
    """
    if not all(check.value is not None and math.isfinite(check.value) for check in wrong):
        return None
    own = str(program.dtype).removeprefix("torch.")
    if program.dtype.itemsize < 8 and any(slot_form(cls.states) for cls in program.classes.values()):
        return torch.float64, f"rounding to {own} changes the whole numbers that slots hold"
    if rounding_chooses(program):
        return torch.float32, f"rounding to {own} makes layers choose otherwise"
    if program.dtype == torch.float32 and _keeps(program):
        return torch.float64, f"rounding to {own} makes layers keep other pairs"
    if program.dtype == torch.float32 and all((c.value or 0) <= NEAR * (c.tolerance or 0) for c in wrong):
        return torch.float64, f"the model amplifies rounding to {own}"
    return None


def rounding_chooses(program: ProgramGraphs) -> bool:
    """Is the program in half precision, and does a layer make integers or truth values of what it computes, or
    choose the pairs that it keeps?
    """
    return program.dtype.itemsize < 4 and (_keeps(program) or any(_chooses(c.wake) for c in program.classes.values()))


def _keeps(program: ProgramGraphs) -> bool:
    """Do sleeps choose pairs to keep?"""
    return any(with_role(cls.states, "kept") for cls in program.classes.values())


def in_wider(subject: Subject, dtype: torch.dtype, *, with_original: bool) -> Subject:
    """The same program and weights in a dtype, and a copy of the original, if one can be made and is asked for."""
    canonical = subject.canonical and widened(subject.canonical, "CANONICAL", dtype)
    original = subject.original if with_original and isinstance(subject.original, Original) else None
    copied = original and Original(deepcopy(original.module).to(dtype), original.beyond)
    return replace(subject, step=widened(subject.step, "STEP", dtype), canonical=canonical, original=copied)


def widened(program: ProgramGraphs, level: Any, dtype: torch.dtype) -> ProgramGraphs:
    """The program in `dtype` if it is narrower."""
    if program.dtype.itemsize >= dtype.itemsize:
        return program
    return run_stages(program, (Stage("retype", level, (Retype(dtype),)),))


def _chooses(wake: Graph) -> bool:
    """Does a call that reads floats of the tokens give anything else than floats?"""
    tokens = find_dependence(wake, ("h",), ()).tokens
    rounded = {node for node in tokens if any(dtype.is_floating_point for dtype in _dtypes(node.meta["type"]))}
    exact = {node for node in tokens if not all(dtype.is_floating_point for dtype in _dtypes(node.meta["type"]))}
    return any(rounded.intersection(node.all_input_nodes) for node in exact)


def _dtypes(type_: Any) -> Iterator[torch.dtype]:
    if isinstance(type_, TupleType):
        for item in type_.items:
            yield from _dtypes(item)
    elif isinstance(type_, TensorType):
        yield type_.dtype
