"""A task, a model, and how it is trained with several numbers of passes N: by default a transformer from scratch whose
every second attention becomes a memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import sleepc
from examples.nanogpt import GPT
from sleepc.api import Program
from sleepc.errors import SleepcWarning
from sleepc.tasks.puzzle import Puzzle

SEEDS = 3


@dataclass(frozen=True)
class Run:
    """One line of the figures: a number of passes, trained for so many steps."""

    passes: int
    steps: int
    longer: bool = False

    @property
    def name(self) -> str:
        """As tables have it."""
        return f"N = {self.passes}" + (", longer" if self.longer else "")


def runs(steps: int, passes: Sequence[int] = (1, 2, 4), longer: int = 0) -> tuple[Run, ...]:
    """A run for each number of passes; and N = 1 once more with `longer` times the steps, if that is not 0."""
    made = tuple(Run(n, steps) for n in passes)
    return (*made, Run(1, steps * longer, longer=True)) if longer else made


def from_scratch(e: Experiment, passes: int, seed: int) -> Program:
    """A transformer whose values `seed` decides, converted: attention, memory, attention, memory .."""
    torch.manual_seed(seed)
    vocab = len(e.puzzle.vocabulary)
    model = GPT(vocab, e.width, e.heads, e.blocks, context=e.window, tied=False)
    for table in (model.tokens, model.positions):
        nn.init.normal_(table.weight, std=0.5)
    recipe = {"strategy": "replace", "layers": "every:2", "window": e.window, "sinks": 0, "eviction": "hard"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SleepcWarning)  # it was not trained for its passes: it will be
        return sleepc.convert(model, {**recipe, "consolidation": "recurrent", "passes": passes})


@dataclass(frozen=True)
class Experiment:
    """A task, a model and how it is trained; `metric` of sleepc's evaluation, at each depth of the task, of which
    `shown` are in tables and pictures. `practice` is what it is trained on, where that is not the task itself: a
    curriculum. `build` makes the program for a number of passes and a seed; `training` are options of Program.train.

    Every run has the same examples, initial values (by seed) and learning rates.
    """

    title: str
    puzzle: Puzzle
    metric: str
    window: int
    runs: tuple[Run, ...]
    width: int = 64
    heads: int = 4
    blocks: int = 4
    practice: Puzzle | None = None
    batch: int = 128
    lr: float = 4e-3
    muon_lr: float = 5e-3
    every: int = 25
    held_out: int = 512
    seeds: int = SEEDS
    shown: tuple[int, ...] = ()
    build: Callable[[Experiment, int, int], Program] = from_scratch
    training: dict[str, Any] = field(default_factory=lambda: {"scratch": True})
