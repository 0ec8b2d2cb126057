"""The part from scratch: a transformer whose sleeps are to keep all that was told, trained on two tasks.

Four blocks (examples/nanogpt.py), a memory behind every second one, which is written in sleeps. A context fills the
window; after its sleep eviction is hard and there are no sinks, so what is answered comes from what the sleep made. A
cell's trainings have the same examples, initial values (by seed), learning rates and steps.
"""

from __future__ import annotations

import argparse
import json
import warnings
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path

import numpy as np
import torch
from common import Row, console
from compared_cells import Options
from torch import nn

import sleepc
from examples.nanogpt import GPT
from examples.trend.experiment import Experiment, Run
from examples.trend.training import Lines, folder_of, train_each
from sleepc.errors import SleepcWarning, UsageError
from sleepc.tasks.khop import KHop
from sleepc.tasks.needle import MultiKey
from sleepc.tasks.puzzle import Example
from sleepc.whole_file import write_whole

PLAIN: Options = {"strategy": "insert", "layers": "every:2", "write": "sleep", "sinks": 0, "eviction": "hard"}
TASKS = ("retrieval", "khop")
BATCH, RATE = 64, 6e-3


@dataclass(frozen=True)
class Growing(KHop):
    """One hop up to example `until`, then all, to train on."""

    until: int = 0

    def example(self, index: int, rng: np.random.Generator) -> Example:
        """See Puzzle."""
        return KHop.example(replace(self, hops=self.hops[:1]) if index < self.until else self, index, rng)


KEYS = MultiKey(pairs=(8,), keys=16, values=16, questions=8)
HOPS = KHop(entities=4, relations=2, hops=(1, 2), questions=8)
LEARNED = Growing(entities=4, relations=2, hops=(1, 2), questions=8, until=300 * BATCH)


def built(recipe: Options, e: Experiment, passes: int, seed: int) -> sleepc.Program:
    """The model of an experiment, converted as `recipe` says, passes included. Raises UsageError if it cannot be."""
    del passes
    torch.manual_seed(seed)
    model = GPT(len(e.puzzle.vocabulary), e.width, e.heads, e.blocks, context=e.window, tied=False)
    for table in (model.tokens, model.positions):
        nn.init.normal_(table.weight, std=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SleepcWarning)  # it is not trained yet
        return sleepc.convert(model, {**PLAIN, "window": e.window, **recipe})


def experiments(recipe: Options, *, tiny: bool) -> dict[str, Experiment]:
    """By name: the tasks, for one cell."""
    common = {"metric": "accuracy", "batch": BATCH, "lr": RATE, "muon_lr": 1.25 * RATE, "every": 25, "held_out": 128}
    steps = {"retrieval": 2, "khop": 2} if tiny else {"retrieval": 400, "khop": 700}
    if tiny:
        common |= {"batch": 2, "held_out": 2, "width": 16, "heads": 2, "blocks": 2}
    make = partial(built, recipe)
    return {
        "retrieval": Experiment("", KEYS, window=24, runs=(Run(1, steps["retrieval"]),), build=make, **common),
        "khop": Experiment("", HOPS, window=32, runs=(Run(1, steps["khop"]),), build=make, practice=LEARNED, **common),
    }


def trained(chosen: dict[str, Options], options: argparse.Namespace) -> list[Row] | None:
    """A row for each cell, task and seed; None where it was stopped. It goes on with what is there."""
    rows: list[Row] = []
    jobs: list[tuple[Experiment, Run, int, Path]] = []
    for name, recipe in chosen.items():
        made = experiments(recipe, tiny=options.tiny)
        for task, e in ((task, made[task]) for task in options.tasks):
            folder = options.work / task / name.replace(", ", "-").replace(" ", "-")
            facts = _facts(e, folder / "facts.json")
            for seed in range(options.seeds):
                row = {"kind": task, "cell": name, "seed": seed, **facts}
                rows.append(row)
                if "refused" not in row:
                    jobs.append((e, e.runs[0], seed, folder_of(folder, e.runs[0], seed)))
                    row["folder"] = jobs[-1][-1]
    console.log(f"{len(jobs)} trainings, {options.workers} at a time")
    if not train_each(sorted(jobs, key=lambda job: job[2]), options.workers):
        return None
    for row in rows:
        if (folder := row.pop("folder", None)) is not None:
            row |= _scores(Lines(folder / "scores.jsonl").read())
    return rows


def _facts(e: Experiment, file: Path) -> Row:
    """Sizes of a cell's model, or why there is none."""
    if file.is_file():
        found: Row = json.loads(file.read_text())
        return found
    try:
        program = e.build(e, 1, 0)
    except UsageError as error:
        found = {"refused": str(error).splitlines()[0]}
    else:
        sizes = [prod(p.shape) for p in program.graphs.params.values()]
        found = {"state_bytes": program.graphs.state_bytes(), "parameters": sum(sizes)}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(found).encode())
    return found


def _scores(scores: list[Row]) -> Row:
    """The last scores, milliseconds of a step, and after how many steps most answers were right."""
    last = scores[-1]
    shares = {name: value for name, value in last.items() if name not in ("step", "loss", "pace")}
    known = (row["step"] for row in scores if np.mean([row[name] for name in shares]) > 0.5)
    pace = 1e3 * float(np.median([row["pace"] for row in scores]))
    return {**shares, "loss": last["loss"], "half_at": next(known, None), "step_ms": pace}
