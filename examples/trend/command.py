"""The command of an example: train the size that is asked for, and show its figures."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from examples.trend.experiment import SEEDS, Experiment
from examples.trend.figures import show
from examples.trend.training import one_thread, options, train_all
from sleepc.errors import SleepcError
from sleepc.train.trainer import Hooks

HOUR = 3600.0
ESTIMATED = 2  # steps that an estimate takes, after one that warms up
SMALL_BATCH = 2  # examples of those steps where there is no GPU
STOPPED = 130  # the exit status after Ctrl-C


def main(name: str, about: str, sizes: dict[str, Experiment], argv: Sequence[str] | None = None) -> int:
    """Train the experiment of the size that was asked for, and show its figures. Run again, it goes on."""
    given = arguments(about, argv)
    size = "quick" if given.quick else "full" if given.full else "normal"
    e = sizes[size]
    if given.seeds:
        e = replace(e, seeds=given.seeds)
    workers = given.workers or (1 if torch.cuda.is_available() else 2)
    work = given.work or Path("build") / "trend" / (name if size == "normal" else f"{name}-{size}")
    try:
        if given.full and not _agreed(e, workers, given.yes):
            return 2
        print(f"{e.title}: {len(e.runs) * e.seeds} trainings, {workers} at a time, in {work}", flush=True)
        started = time.perf_counter()
        if not train_all(e, work, workers):
            return STOPPED
    except KeyboardInterrupt:
        return STOPPED
    except SleepcError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except BrokenProcessPool:
        print(f"A training was killed, perhaps for its memory. The same command goes on from {work}.", file=sys.stderr)
        return 1
    show(e, work)
    print(f"{spelled_time(time.perf_counter() - started)} on this machine, since this start")
    return 0


def arguments(about: str, argv: Sequence[str] | None) -> argparse.Namespace:
    """The options of both examples."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a minute: does it run here?")
    size.add_argument("--full", action="store_true", help="the paper's size, for a GPU; prints an estimate first")
    parser.add_argument("--yes", action="store_true", help="start --full though it takes more than an hour")
    parser.add_argument("--work", type=Path, help="folder of checkpoints and results (build/trend/NAME)")
    parser.add_argument("--seeds", type=int, help=f"how many ({SEEDS}; --quick and --full: 1)")
    parser.add_argument("--workers", type=int, help="trainings side by side, a core for each (2; 1 on a GPU)")
    return parser.parse_args(argv)


def _agreed(e: Experiment, workers: int, yes: bool) -> bool:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"Taking a few steps on this {device} for an estimate ..", flush=True)
    seconds = estimate(e, workers)
    print(f"{e.title}: about {spelled_time(seconds)} on this {device}.")
    if seconds > HOUR and not yes:
        print("That is more than an hour: add --yes to start it. Ctrl-C stops it, and the same command goes on.")
        return False
    return True


def estimate(e: Experiment, workers: int) -> float:
    """Seconds that all runs will take: from some steps of each, with fewer examples where there is no GPU."""
    batch, training = e.batch, e.training
    if not torch.cuda.is_available():
        batch, training = min(e.batch, SMALL_BATCH), {**e.training, "accumulate": 1}
    total, small = 0.0, replace(e, batch=batch, training=training)
    one_thread()
    for run in e.runs:
        paces: list[float] = []
        hooks = Hooks(on_step=lambda step, paces=paces: paces.append(step.seconds))  # type: ignore[misc]
        with TemporaryDirectory() as folder:
            program = small.build(small, run.passes, 0)
            given = options(small, ESTIMATED + 1, 0)
            program.train(e.practice or e.puzzle, work=folder, force=True, hooks=hooks, **given)
        pace = statistics.median(paces[1:]) * e.batch / batch
        print(f"{run.name}: {pace:.3g} seconds a step, {run.steps} steps", flush=True)
        total += pace * run.steps * e.seeds
    return total / workers


def spelled_time(seconds: float) -> str:
    """In the largest unit that is at least one.

    >>> spelled_time(90), spelled_time(200_000)
    ('1.5 minutes', '2.3 days')
    """
    for unit, size in (("days", 24 * HOUR), ("hours", HOUR), ("minutes", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"
