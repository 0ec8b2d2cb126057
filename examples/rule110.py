"""Do more passes of a sleep make better memories? Rule 110, from scratch, on two cores: `python examples/rule110.py`.

A ring of bits is read, the model sleeps, attention's window is emptied; then it has to say where the first bit is after
1, 2, .. 8 steps (Do Language Models Need Sleep?, arXiv 2605.26099; docs/paper.md has what came out). Each number of
steps goes on from the one before, which is a curriculum, the same for every number of passes. It goes on where it was
stopped; --quick is a minute, --full the paper's size, where all rings are asked for 32 steps.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # wherever it is started from

from examples.trend.command import main
from examples.trend.experiment import Experiment, runs
from sleepc.tasks.puzzle import Example, Question, Words
from sleepc.tasks.rule110 import ASK, Rule110


@dataclass(frozen=True)
class EveryStep:
    """Rule 110 on one ring: the i-th "?" asks for the first bit after the i-th number of steps."""

    by: ClassVar[str] = "steps"
    width: int = 16
    steps: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)

    @property
    def vocabulary(self) -> Words:
        """The two bits, and what asks."""
        return ("0", "1", ASK)

    def example(self, index: int, rng: np.random.Generator) -> Example:
        """See Puzzle."""
        state = rng.bit_generator.state
        made = []
        for steps in self.steps:
            rng.bit_generator.state = state  # the same ring each time
            made.append(Rule110(self.width, states=1, steps=(steps,)).example(0, rng))
        answers = [example.questions[0].answer for example in made]
        asked = [
            Question((ASK,) * i, answer, n) for i, (answer, n) in enumerate(zip(answers, self.steps, strict=True), 1)
        ]
        return Example(made[0].context, tuple(asked))


SIZES = {
    "normal": Experiment(
        "Rule 110, a ring of 16 bits, 1 to 8 steps",
        EveryStep(),
        metric="accuracy",
        window=16,
        runs=runs(300, longer=3),
        shown=(4, 5, 6, 7),
    ),
    "quick": Experiment(
        "Rule 110, a ring of 8 bits, 1 to 4 steps",
        EveryStep(width=8, steps=(1, 2, 3, 4)),
        metric="accuracy",
        window=8,
        runs=runs(120, passes=(1, 2)),
        width=32,
        every=20,
        held_out=256,
        seeds=1,
    ),
    # As far as it is told; steps are 5 billion tokens. Heads are a guess.
    "full": Experiment(
        "Rule 110, four rings of 24 bits, 32 steps",
        Rule110(width=24, states=4, steps=(32,)),
        metric="exact",
        window=24,
        runs=runs(97_656, passes=(1, 2, 3, 4)),
        width=256,
        batch=512,
        lr=5e-5,
        muon_lr=2e-3,
        every=500,
        seeds=1,
    ),
}

if __name__ == "__main__":
    raise SystemExit(main("rule110", __doc__ or "", SIZES))
