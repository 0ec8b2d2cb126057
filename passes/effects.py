"""Whether passes keep their effect: programs are run on tokens of one window before and after each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from sleepc.errors import SleepcError
from sleepc.ir.interp import run_program
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.types import TensorType
from sleepc.passes.base import Pass


@dataclass(frozen=True)
class _Tried:
    """A program's logits [T,V], its operators with the dtypes of their results, and which of two functions it is if the
    original chooses by a call's length.
    """

    logits: Tensor
    operators: Counter[tuple[str, torch.dtype]]
    beyond: int | None


class Trial:
    """`tokens`, no more than a window has, and what the program before the next pass makes of them."""

    def __init__(self, tokens: Sequence[int], program: ProgramGraphs) -> None:
        self.tokens = tokens
        self.last = self._try(program)

    def check(self, each: Pass, program: ProgramGraphs) -> None:
        """Raises SleepcError if `each` has changed more than its effect allows."""
        before, self.last = self.last, self._try(program)
        if each.effect == "REPLACES" or before.beyond != self.last.beyond:
            return
        error = float((self.last.logits.double() - before.logits.double()).abs().max())
        allowed = 0.0 if each.effect == "EXACT" else _rounding(before, self.last)
        if not error <= allowed:  # also if it is not a number
            raise SleepcError(
                f"the effect of {each.name} is {each.effect}, and inside the window a logit changed by {error:.3g} "
                f"({allowed:.3g} is allowed)"
            )

    def _try(self, program: ProgramGraphs) -> _Tried:
        calls = [node for graph in program.graphs() for node in graph.calls()]
        operators = Counter((str(node.target), dtype) for node in calls if (dtype := _dtype(node)) is not None)
        return _Tried(run_program(program, self.tokens), operators, program.beyond)


def _dtype(node: fx.Node) -> torch.dtype | None:
    known = node.meta.get("type", node.meta.get("val"))
    return known.dtype if isinstance(known, (TensorType, Tensor)) else None


def _rounding(before: _Tried, after: _Tried) -> float:
    """What rounding may change in a logit: eps^(3/4) of the largest, 2e-12 in float64 and 6e-6 in float32, in the
    coarsest dtype of the logits and of the operators that came or went.
    """
    changed = (before.operators - after.operators) + (after.operators - before.operators)
    dtypes = {before.logits.dtype, *(d for _, d in changed if d.is_floating_point or d.is_complex)}
    return float(max(torch.finfo(d).eps for d in dtypes) ** 0.75 * max(1.0, float(before.logits.abs().max())))
