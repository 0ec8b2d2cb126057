"""Trainings of an experiment, several side by side; each goes on where it was stopped."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from examples.trend.experiment import Experiment, Run
from sleepc.api import Program
from sleepc.backends.table import find_trainer
from sleepc.backends.training_steps import TrainingSteps
from sleepc.tasks.puzzle import examples
from sleepc.tasks.solving import Solving
from sleepc.tasks.spelling import choose_spelling
from sleepc.train.learned import tokenizer_of
from sleepc.train.trainer import Hooks, Step, Trainer
from sleepc.whole_file import write_whole

Row = dict[str, Any]


def _never() -> bool:
    return False


_stopping: Callable[[], bool] = _never  # of a process that trains: was it told to stop?


def train(e: Experiment, run: Run, seed: int, folder: Path) -> bool:
    """Train in `folder`, from where it was stopped if it was; False where it is stopped again. Scores on held-out
    examples are lines of its scores.jsonl.
    """
    if _stopping():
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
        line = f"{run.name:<14} seed {seed}  step {step.step:>5}/{step.of}  loss {step.loss:.3f}  {shown}\n"
        sys.stderr.write(line)  # at once: other trainings write there, too

    hooks = Hooks(on_start=started, on_step=stepped, should_stop=_stopping)
    outcome = program.train(
        e.practice or e.puzzle, work=folder, resume=True, force=True, hooks=hooks, **options(e, run.steps, seed)
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
        self.steps: TrainingSteps | None = None

    def take(self) -> dict[str, float]:
        """{"steps 12": 0.8, ..}"""
        values = {**self.student.frozen, **self.student.values()}
        if self.steps is None:
            self.steps = find_trainer().steps_on(self.student.program, values, device=self.student.device)
        self.steps.bind(values)
        rows = self.task.rows(self.steps, self.task.length, lambda share: None)
        return {f"{self.e.puzzle.by} {row[self.e.puzzle.by]}": float(row[self.e.metric]) for row in rows}


class Lines:
    """A JSON-lines file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Row]:
        """All whole lines, without one at the end that was cut off; none if there is no file."""
        lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def add(self, row: Row) -> None:
        """One more line."""
        self.write([*self.read(), row])

    def keep(self, wanted: Callable[[Row], bool]) -> None:
        """Only those lines."""
        self.write([row for row in self.read() if wanted(row)])

    def write(self, rows: Sequence[Row]) -> None:
        """These lines, all or nothing."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def one_thread() -> None:
    """As many as a training gets, where there is no GPU."""
    if not torch.cuda.is_available():
        torch.set_num_threads(1)


def _begin(stop: Any) -> None:
    """A process that trains: told to stop, it ends the step and writes a checkpoint; without its parent it ends."""
    global _stopping
    one_thread()
    _stopping = stop.is_set
    Thread(target=_end_with, args=(parent_process(),), daemon=True).start()


def _end_with(parent: Any) -> None:
    """Else a process whose parent was killed would train on, and wait for ever after that."""
    parent.join()
    os._exit(1)


def folder_of(work: Path, run: Run, seed: int) -> Path:
    """Where a training lives."""
    return work / f"n{run.passes}-{run.steps}-seed{seed}"


def train_all(e: Experiment, work: Path, workers: int) -> bool:
    """Train every run with every seed, the longest first within a seed; see `train_each`."""
    order = [(run, seed) for seed in range(e.seeds) for run in sorted(e.runs, key=lambda r: -r.passes * r.steps)]
    return train_each([(e, run, seed, folder_of(work, run, seed)) for run, seed in order], workers)


def train_each(jobs: Sequence[tuple[Experiment, Run, int, Path]], workers: int) -> bool:
    """Train experiments, each a run and a seed in a folder, `workers` at a time; False where it was stopped."""
    context = get_context("spawn")
    stop = context.Event()
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(stop,)) as pool:
        # Ctrl-C reaches all processes of a terminal. Those that are started here never see it, not even while they
        # import: it is ignored when they start, and `stop` tells them.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            futures = [pool.submit(train, *job) for job in jobs]
        finally:
            signal.signal(signal.SIGINT, before)
        try:
            return all([future.result() for future in futures])
        except KeyboardInterrupt:
            print("Stopping after this step. The same command goes on from here.", flush=True)
            stop.set()
            for future in futures:
                future.cancel()
            return False
