"""Do more passes of a sleep help a pretrained model? Sums told in words: `python examples/gsm_infinite.py`.

A model is converted with recurrent sleep over its middle half, and hard eviction. It reads a question, and sentences of
which a few lead to the answer (GSM-Infinite, worded; Do Language Models Need Sleep?, arXiv 2605.26099; docs/paper.md),
sleeps after every window, and has to say the number. --full is nearest to the paper, for a GPU, and --model names
another model; else a small setting for SmolLM2, which nobody has run whole; --quick only shows that it runs.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # wherever it is started from

import sleepc
from examples.trend.command import main
from examples.trend.experiment import Experiment, runs
from sleepc.api import Program
from sleepc.errors import SleepcWarning
from sleepc.hf.packaged import model_named
from sleepc.tasks.gsm_worded import GsmWorded

MODEL = "SLEEPC_EXAMPLE_MODEL"  # the variable by which processes that train side by side are told which
RECIPE: dict[str, Any] = {"consolidation": "recurrent", "loop": "middle", "eviction": "hard", "sinks": 1}


def pretrained(e: Experiment, passes: int, seed: int) -> Program:
    """The model, converted; `seed` decides the order of examples alone."""
    del seed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SleepcWarning)  # it was not trained for its passes: it will be
        return sleepc.convert(os.environ[MODEL], {**RECIPE, "window": e.window, "passes": passes})


SMALL = Experiment(
    "GSM-Infinite, one or two operations",
    GsmWorded(ops=(1, 2), noise=1, totals=0, first=1),
    metric="accuracy",
    window=64,
    runs=runs(400),
    batch=8,
    lr=2e-3,
    every=50,
    held_out=64,
    seeds=1,
    build=pretrained,
    training={"train": "all", "weights_lr": 2e-5, "checkpointing": True},
)
SIZES = {
    "normal": SMALL,
    "quick": replace(SMALL, runs=runs(2, passes=(1, 2)), batch=2, every=2, held_out=4),
    # As far as it is told. The task here has 64 quantities, which is some 1,500 tokens; the paper's has 2,000 to 3,300.
    # Steps and rates are guesses.
    "full": replace(
        SMALL,
        title="GSM-Infinite, one to eight operations",
        puzzle=GsmWorded(noise=55, first=1),
        window=1024,
        runs=runs(10_000, passes=(1, 2, 4)),
        batch=32,
        training={**SMALL.training, "accumulate": 8},  # all 32 at once took more than 110 GB
        every=500,
        held_out=1600,
    ),
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--model", default="smollm2", help="smollm2, gemma3, a directory, hub id or .gguf file")
    given, others = parser.parse_known_args()
    os.environ[MODEL] = str(model_named(given.model, lambda what, share: print(what)))
    raise SystemExit(main("gsm_infinite", __doc__ or "", SIZES, others))
