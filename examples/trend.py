"""What examples of the paper's trend share: a model (by default a transformer from scratch whose every second attention
becomes a memory) trained on a task with several numbers of passes N, side by side, and figures over steps and time.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

import sleepc
from examples.nanogpt import GPT
from sleepc.api import Program
from sleepc.backends.eager.steps import EagerSteps
from sleepc.errors import SleepcError, SleepcWarning
from sleepc.tasks.puzzle import Puzzle, examples
from sleepc.tasks.solving import Solving
from sleepc.tasks.spelling import choose_spelling
from sleepc.train.learned import tokenizer_of
from sleepc.train.trainer import Step, Trainer
from sleepc.train.training import Hooks
from sleepc.whole_file import write_whole

Row = dict[str, Any]
SEEDS = 3
HOUR = 3600.0
ESTIMATED = 2  # steps that an estimate takes, after one that warms up
SMALL_BATCH = 2  # examples of those steps where there is no GPU
METRICS = {"exact": "all bits right", "accuracy": "right answers"}


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


# ------------------------------------------------------------------------------------------------------ the model


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


# ------------------------------------------------------------------------------------------------------ one training


def train(e: Experiment, run: Run, seed: int, folder: Path) -> bool:
    """Train in `folder`, from where it was stopped if it was; False where it is stopped again. Scores on held-out
    examples are lines of its scores.jsonl.
    """
    if _stopping:
        return False
    scores = Lines(folder / "scores.jsonl")
    if any(row["step"] == run.steps for row in scores.read()):
        return True
    program, pace = e.build(e, run.passes, seed), Pace()
    exam = Exam(e, program)

    def started(trainer: Trainer) -> None:
        scores.keep(lambda row: row["step"] <= trainer.done)
        exam.student = trainer.student
        pace.begin(trainer.done)

    def stepped(step: Step) -> None:
        if step.step % e.every and step.step != step.of:
            return
        seconds, figures = pace.of(step.step), exam.take()
        scores.add({"step": step.step, "loss": step.loss, "pace": seconds, **figures})
        pace.begin(step.step)
        shown = "  ".join(f"{depth} {share:.2f}" for depth, share in figures.items())
        print(f"{run.name:<14} seed {seed}  step {step.step:>5}/{step.of}  loss {step.loss:.3f}  {shown}", flush=True)

    hooks = Hooks(on_start=started, on_step=stepped, should_stop=lambda: bool(_stopping))
    outcome = program.train(
        e.practice or e.puzzle, work=folder, resume=True, hooks=hooks, **options(e, run.steps, seed)
    )
    return outcome.finished


def options(e: Experiment, steps: int, seed: int) -> dict[str, Any]:
    """What `Program.train` is given, the same for all N."""
    rates = {"lr": e.lr, "weights_lr": e.lr, "muon_lr": e.muon_lr}
    return {"steps": steps, "batch": e.batch, "seed": seed, **rates, **e.training}


class Pace:
    """Seconds of a step since `begin`: of this process alone where it computes by itself, with one thread."""

    def begin(self, step: int) -> None:
        """From here on."""
        self.step, self.start = step, self.now()

    def of(self, step: int) -> float:
        """The mean of the steps since then."""
        return (self.now() - self.start) / (step - self.step)

    def now(self) -> float:
        """Not counting what else a shared machine does in the meantime. A GPU's work has no such clock."""
        return time.perf_counter() if torch.cuda.is_available() else time.process_time()


class Exam:
    """Held-out examples, and a student that is asked them: shares of right answers by depth."""

    student: Any

    def __init__(self, e: Experiment, program: Program) -> None:
        self.e, held = e, examples(e.puzzle, e.held_out, seed=0)
        spell, _ = choose_spelling(tokenizer_of(program), e.puzzle.vocabulary, program.graphs.vocab, held)
        self.task = Solving(e.puzzle.by, held, spell(held))
        self.steps: EagerSteps | None = None

    def take(self) -> dict[str, float]:
        """{"steps 12": 0.8, ..}"""
        values = {**self.student.frozen, **self.student.values()}
        if self.steps is None:
            self.steps = EagerSteps(self.student.program, values, device=self.student.device)
        self.steps.bind(values)
        rows = self.task.rows(self.steps, self.task.length, lambda share: None)
        return {f"{self.e.puzzle.by} {row[self.e.puzzle.by]}": float(row[self.e.metric]) for row in rows}


class Lines:
    """A JSON-lines file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Row]:
        """All lines; none where there is no file."""
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []

    def add(self, row: Row) -> None:
        """One more line."""
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def keep(self, wanted: Callable[[Row], bool]) -> None:
        """Only those lines."""
        self.write([row for row in self.read() if wanted(row)])

    def write(self, rows: Sequence[Row]) -> None:
        """These lines, all or nothing."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, "".join(json.dumps(row) + "\n" for row in rows).encode())


# ------------------------------------------------------------------------------------------------------ side by side

_stopping: list[bool] = []  # of this process: not empty after Ctrl-C


def one_thread() -> None:
    """As many as a training gets, where there is no GPU."""
    if not torch.cuda.is_available():
        torch.set_num_threads(1)


def _begin() -> None:
    """A process that trains: Ctrl-C lets it end the step and write a checkpoint."""
    one_thread()
    signal.signal(signal.SIGINT, lambda *_: _stopping.append(True))


def folder_of(work: Path, run: Run, seed: int) -> Path:
    """Where a training lives."""
    return work / f"n{run.passes}-{run.steps}-seed{seed}"


def train_all(e: Experiment, work: Path, workers: int) -> bool:
    """Every run with every seed, `workers` at a time, the longest first within a seed; False where it was stopped."""
    jobs = [(run, seed) for seed in range(e.seeds) for run in sorted(e.runs, key=lambda r: -r.passes * r.steps)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_begin) as pool:
        futures = [pool.submit(train, e, run, seed, folder_of(work, run, seed)) for run, seed in jobs]
        try:
            return all([future.result() for future in futures])
        except KeyboardInterrupt:
            print("Stopping after this step. The same command goes on from here.", flush=True)
            for future in futures:
                future.cancel()
            return False


# ------------------------------------------------------------------------------------------------------ figures


def collect(e: Experiment, work: Path) -> list[Row]:
    """The scores of all runs: passes, steps of the run, seed, step, seconds, shares by depth.

    `seconds` are steps times the median pace over all seeds; evaluations are not in them.
    """
    rows = []
    for run in e.runs:
        found = [(seed, Lines(folder_of(work, run, seed) / "scores.jsonl").read()) for seed in range(e.seeds)]
        pace = statistics.median(score["pace"] for _, scores in found for score in scores)
        for seed, scores in found:
            for score in scores:
                facts = {"run": run.name, "passes": run.passes, "of": run.steps, "seed": seed, "step": score["step"]}
                shares = {depth: score[depth] for depth in depths(e)}
                rows.append({**facts, "seconds": round(pace * score["step"], 2), "loss": score["loss"], **shares})
    return rows


def depths(e: Experiment) -> list[str]:
    """Names of the figures of a score."""
    questions = [q for example in examples(e.puzzle, 16, seed=0) for q in example.questions]
    return [f"{e.puzzle.by} {depth}" for depth in sorted({q.depth for q in questions})]


def shown(e: Experiment) -> list[str]:
    """Those that tables and pictures have."""
    return [f"{e.puzzle.by} {depth}" for depth in e.shown] or depths(e)


def at(rows: Sequence[Row], run: Run, depth: str, axis: str, limit: float) -> list[float]:
    """Of each seed, the latest share with `axis` (step or seconds) up to `limit`; none before the first score."""
    found: dict[int, float] = {}
    for row in rows:
        if row["run"] == run.name and row[axis] <= limit * (1 + 1e-6):
            found[row["seed"]] = row[depth]
    return list(found.values())


def spelled(values: Sequence[float]) -> str:
    """Mean, and range over seeds."""
    return f"{statistics.mean(values):.2f} ({min(values):.2f}–{max(values):.2f})" if values else "-"


def tables(e: Experiment, rows: Sequence[Row]) -> str:
    """Shares at equal steps, and at equal time, in Markdown."""
    steps = min(run.steps for run in e.runs)
    ends = sorted({round(max(r["seconds"] for r in rows if r["run"] == run.name)) for run in e.runs})
    marks = {
        "step": [round(steps * part / 4 / e.every) * e.every for part in (1, 2, 3)] + [steps],
        "seconds": [end + 1 for end in ends],
    }
    parts = []
    for depth in shown(e):
        for axis, limits in marks.items():
            head = [f"{depth}, {METRICS[e.metric]}", *(f"{axis} {limit:.0f}" for limit in limits)]
            lines = [head, ["---"] * len(head)]
            for run in e.runs:
                if axis == "seconds" or not run.longer:
                    lines.append([run.name, *(spelled(at(rows, run, depth, axis, limit)) for limit in limits)])
            parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
    return "\n\n".join(parts)


def draw(e: Experiment, rows: Sequence[Row], path: Path) -> None:
    """Shares over steps and over seconds, a row of pictures for each depth: means, and ranges over seeds."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    names = shown(e)
    with mpl.rc_context({"svg.hashsalt": "sleepc", "svg.fonttype": "none"}):  # the same rows give the same bytes
        figure = Figure(figsize=(9, 0.8 + 2.6 * len(names)), layout="constrained")
        FigureCanvasSVG(figure)
        figure.suptitle(e.title)
        grid = figure.subplots(len(names), 2, sharey=True, squeeze=False)
        for line, depth in zip(grid, names, strict=True):
            for axes, axis in zip(line, ("step", "seconds"), strict=True):
                for i, run in enumerate(e.runs):
                    if axis == "seconds" or not run.longer:
                        _curve(axes, [r for r in rows if r["run"] == run.name], axis, depth, run.name, f"C{i}")
                axes.set_xlabel({"step": "steps", "seconds": "seconds of training, one core"}[axis])
                axes.grid(alpha=0.3)
            line[0].set_ylabel(f"{depth}: {METRICS[e.metric]}")
        grid[0][0].legend()
        figure.savefig(path, format="svg", metadata={"Date": None})


def _curve(axes: Any, rows: Sequence[Row], axis: str, depth: str, label: str, colour: str) -> None:
    by_step: dict[int, list[Row]] = {}
    for row in rows:
        by_step.setdefault(row["step"], []).append(row)
    places = [found[0][axis] for found in by_step.values()]
    shares = [[row[depth] for row in found] for found in by_step.values()]
    axes.plot(places, [statistics.mean(s) for s in shares], label=label, color=colour)
    axes.fill_between(places, [min(s) for s in shares], [max(s) for s in shares], color=colour, alpha=0.2, lw=0)


# ------------------------------------------------------------------------------------------------------ the command


def estimate(e: Experiment, workers: int) -> float:
    """Seconds that all runs will take: from some steps of each, with fewer examples where there is no GPU."""
    batch = e.batch if torch.cuda.is_available() else min(e.batch, SMALL_BATCH)
    total, small = 0.0, replace(e, batch=batch)
    one_thread()
    for run in e.runs:
        paces: list[float] = []
        hooks = Hooks(on_step=lambda step, paces=paces: paces.append(step.seconds))  # type: ignore[misc]
        with TemporaryDirectory() as folder:
            program = small.build(small, run.passes, 0)
            program.train(e.practice or e.puzzle, work=folder, hooks=hooks, **options(small, ESTIMATED + 1, 0))
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


def main(name: str, about: str, sizes: dict[str, Experiment], argv: Sequence[str] | None = None) -> int:
    """Train the experiment of the size that was asked for, and show its figures. Run again, it goes on."""
    given = arguments(about, argv)
    size = "quick" if given.quick else "full" if given.full else "normal"
    e = sizes[size]
    if given.seeds:
        e = replace(e, seeds=given.seeds)
    workers = given.workers or (1 if torch.cuda.is_available() else 2)
    work = given.work or Path("build") / "trend" / (name if size == "normal" else f"{name}-{size}")
    if given.full and not _agreed(e, workers, given.yes):
        return 2
    print(f"{e.title}: {len(e.runs) * e.seeds} trainings, {workers} at a time, in {work}", flush=True)
    started = time.perf_counter()
    try:
        if not train_all(e, work, workers):
            return 130
    except SleepcError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    show(e, work)
    print(f"{spelled_time(time.perf_counter() - started)} on this machine, since this start")
    return 0


def show(e: Experiment, work: Path) -> None:
    """Write results.jsonl and plot.svg, and print tables."""
    rows = collect(e, work)
    Lines(work / "results.jsonl").write(rows)
    draw(e, rows, work / "plot.svg")
    print(f"\n{tables(e, rows)}\n\n{work / 'results.jsonl'}, {work / 'plot.svg'}")


def _agreed(e: Experiment, workers: int, yes: bool) -> bool:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"Taking a few steps on this {device} for an estimate ..", flush=True)
    seconds = estimate(e, workers)
    print(f"{e.title}: about {spelled_time(seconds)} on this {device}.")
    if seconds > HOUR and not yes:
        print("That is more than an hour: add --yes to start it. Ctrl-C stops it, and the same command goes on.")
        return False
    return True


def runs(steps: int, passes: Sequence[int] = (1, 2, 4), longer: int = 0) -> tuple[Run, ...]:
    """A run for each number of passes; and N = 1 once more with `longer` times the steps, if that is not 0."""
    made = tuple(Run(n, steps) for n in passes)
    return (*made, Run(1, steps * longer, longer=True)) if longer else made
