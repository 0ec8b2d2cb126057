"""Do more passes of a sleep make better memories? Rule 110, from scratch, on two cores: `python examples/rule110.py`.

A ring of bits is read, the model sleeps, attention's window is emptied; then it has to say where the first bit is after
so many steps (Do Language Models Need Sleep?, arXiv 2605.26099; docs/paper.md has what came out). It goes on where it
was stopped; --quick is a minute, --full the paper's size.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # wherever it is started from

from examples.trend import Experiment, main, runs
from sleepc.tasks.rule110 import Rule110

SIZES = {
    "normal": Experiment(
        "Rule 110, a ring of 16 bits, 6 steps",
        Rule110(width=16, states=1, steps=(6,)),
        metric="exact",
        window=16,
        runs=runs(300, longer=3),
    ),
    "quick": Experiment(
        "Rule 110, a ring of 8 bits, 4 steps",
        Rule110(width=8, states=1, steps=(4,)),
        metric="exact",
        window=8,
        runs=runs(150, passes=(1, 2)),
        width=32,
        every=15,
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
