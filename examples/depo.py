"""Do more passes of a sleep make better memories? Hops on a cycle, on two cores: `python examples/depo.py`.

The edges of a cycle of nodes are read in random order, the model sleeps, attention's window is emptied; then it has to
say which node is so many hops on (Do Language Models Need Sleep?, arXiv 2605.26099; docs/paper.md has what came out).
It goes on where it was stopped; --quick is a minute, --full the paper's size.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # wherever it is started from

from examples.trend.command import main
from examples.trend.experiment import Experiment, runs
from sleepc.tasks.depo import Depo
from sleepc.tasks.puzzle import Example


@dataclass(frozen=True)
class Growing(Depo):
    """Depo that grows, to train on: up to example `until[0]` one hop, then the first two numbers of hops, and so on."""

    until: tuple[int, ...] = ()

    def example(self, index: int, rng: np.random.Generator) -> Example:
        """See Puzzle."""
        known = self.hops[: 1 + sum(index >= number for number in self.until)]
        return Depo.example(replace(self, hops=known), index, rng)


BATCH = 64
CYCLE: dict[str, Any] = {"nodes": 8, "hops": (1, 2, 3), "letters": 8, "shortest": 1, "longest": 1, "questions": 8}

# "begin" and the names of both ends of each edge fill the window. In training the questions with their answers, all one
# after the other, fill another one, and a sleep comes between them; held-out questions are asked alone.
SIZES = {
    "normal": Experiment(
        "Depo, a cycle of 8 nodes",
        Depo(**CYCLE),
        metric="accuracy",
        window=17,
        runs=runs(750, longer=3),
        practice=Growing(**CYCLE, until=(100 * BATCH, 500 * BATCH)),
        batch=BATCH,
        lr=5e-3,
        muon_lr=7e-3,
        every=50,
        held_out=256,
    ),
    "quick": Experiment(
        "Depo, a cycle of 4 nodes",
        Depo(nodes=4, hops=(1, 2), letters=4, shortest=1, longest=1, questions=2),
        metric="accuracy",
        window=9,
        runs=runs(200, passes=(1, 2)),
        width=32,
        batch=64,
        lr=8e-3,
        muon_lr=1e-2,
        every=20,
        held_out=256,
        seeds=1,
    ),
    # As far as it is told; steps, heads and which layers are memories are guesses.
    "full": Experiment(
        "Depo, a cycle of 75 nodes",
        Depo(nodes=75, hops=(1, 2, 4, 8, 16), questions=10),
        metric="accuracy",
        window=75,
        runs=runs(100_000),
        width=512,
        heads=8,
        blocks=10,
        lr=5e-5,
        muon_lr=2e-3,
        every=500,
        seeds=1,
    ),
}

if __name__ == "__main__":
    raise SystemExit(main("depo", __doc__ or "", SIZES))
