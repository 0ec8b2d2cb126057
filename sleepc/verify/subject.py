"""What is verified, and what with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sleepc.ir.program import ProgramGraphs
from sleepc.passes.analysis.own_windows import exact_tokens, own_windows
from sleepc.recipe import Recipe
from sleepc.runtime.steps import IntArray, Steps
from sleepc.verify.invariants import Logits
from sleepc.verify.oracle import Oracle, parameters_of
from sleepc.verify.original import Original
from sleepc.verify.report import TOLERANCES, Tolerance

FOREVER = 1 << 62


@dataclass(frozen=True)
class Subject:
    """`canonical` and `original` may be missing; `other_weights`: the program has been trained to others than the
    original's, or has LoRA matrices.
    """

    step: ProgramGraphs
    canonical: ProgramGraphs | None
    recipe: Recipe
    tokens: IntArray
    original: Logits | None
    load: Callable[[ProgramGraphs], Steps]
    other_weights: bool = False

    @property
    def tolerance(self) -> Tolerance:
        """What the program's dtype allows."""
        return TOLERANCES[self.step.dtype]

    @property
    def known(self) -> int:
        """How many tokens the original can read with the positions that the program has."""
        limits = (self.step.max_positions, self.step.upto)
        return min((limit for limit in limits if limit is not None), default=FOREVER)

    @property
    def strategies(self) -> set[str]:
        """What becomes of layers."""
        return {plan.strategy for plan in self.recipe.plan(len(self.step.layout))}

    def oracle(self, step: ProgramGraphs) -> Oracle | None:
        """The oracle with the memories' parameters of `step`."""
        if self.canonical is None:
            return None
        return Oracle(self.canonical, self.recipe, parameters_of(self.canonical, step))

    @property
    def exact(self) -> int:
        """How many tokens the program reads as the original does."""
        unknown = (0,) * len(self.step.layout)
        return exact_tokens(self.recipe, unknown if self.canonical is None else own_windows(self.canonical))

    def narrowed(self) -> dict[int, int]:
        """Layers that keep fewer tokens than the window of their own that the model gives them, and that window."""
        if self.canonical is None:
            return {}
        kept = [plan.window for plan in self.recipe.plan(len(self.step.layout))]
        pairs = enumerate(zip(own_windows(self.canonical), kept, strict=True))
        return {i: own for i, (own, window) in pairs if window is not None and window < own}

    def original_at(self, tokens: IntArray, places: Tensor) -> Tensor:
        """The original's logits [n,V] at places [n] of tokens [T]."""
        assert self.original is not None
        ids = torch.from_numpy(tokens)[None]
        if isinstance(self.original, Original):
            return self.original.at(ids, places)[0]
        return self.original(ids)[0, places]
