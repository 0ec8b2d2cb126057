"""What commands that train have in common: where they work, what they show, Ctrl-C, and what they say at the end."""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sleepc.cli.display import Display, err, number, out, print_json, typed
from sleepc.cli.ending import ENDS, STARTS_OVER, Ended, signal_of, stopping
from sleepc.cli.opening import alone_at
from sleepc.errors import SleepcWarning, UsageError

if TYPE_CHECKING:
    from rich.progress import Progress

    from sleepc.api import Program
    from sleepc.cli.training_options import WorkOptions
    from sleepc.train.trainer import Hooks, Step, Trainer
    from sleepc.train.training import Outcome


@dataclass(frozen=True)
class Learning:
    """What a command lets a program learn, in a folder; `following` is the command that shows what came of it."""

    name: str
    learn: Callable[[Path, Display, Hooks], Outcome]
    following: str = ""


def settings_among(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those options of a command that are settings of a training and were given, by the settings' names."""
    from sleepc.train.settings import Settings

    return {name: options[name] for name in Settings.model_fields if options.get(name) is not None}


def load_to_train(artifact: Path) -> Program:
    """The program of an artifact; that it was not trained yet needs no warning."""
    from sleepc import api

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SleepcWarning)
        return api.load(artifact)


def run_training(
    program: Program, learning: Learning, artifact: Path, output: Path | None, options: WorkOptions
) -> None:
    """Let `program` learn in a folder next to `output` (or `artifact`), and write it there when it is finished.

    Raises UsageError if something is in the way, before any work; exits with 1 if it made things worse, which is
    not written without `force`, and with 130 if it was stopped.
    """
    from sleepc.train.checkpoint import forget_checkpoints
    from sleepc.train.trainer import Hooks

    target = output or artifact
    replace = options.force or output is None
    work = target.resolve().with_name(f"{target.resolve().name}.training")
    first = int(os.environ.get("RANK", "0")) == 0  # of several processes
    live = _Live(learning.name, show=first and not options.as_json)
    alone = alone_at(target, program, learning.name, force=replace) if first else nullcontext()
    with stopping(live.stopping) as stopped, alone, _given_up(work):
        if first:
            _check_work(work, resume=options.resume, force=options.force)
        with live.shown():
            hooks = Hooks(live.start, live.step, live.studying, live.judging, lambda: bool(stopped()))
            outcome = learning.learn(work, live.display, hooks)
            if outcome.kept and options.merge:
                program.merge()
            if outcome.kept and first:
                program.save(target, force=replace, progress=live.display)
                forget_checkpoints(work)
    if first:
        _tell(outcome, target, work, live.seconds, learning.following, as_json=options.as_json)
    if not outcome.finished:
        raise Ended(stopped() or signal.SIGINT, "")  # 0 if another of several processes was stopped
    if not outcome.kept:
        raise typer.Exit(1)


@contextmanager
def _given_up(work: Path) -> Iterator[None]:
    """If a step is broken off, say what is kept of the training."""
    from sleepc.train.checkpoint import checkpoints

    try:
        yield
    except ENDS as end:
        kept = [int(path.name.partition("-")[2]) for path in checkpoints(work)]
        said = f"the same command with --resume continues after step {kept[-1]}" if kept else STARTS_OVER
        raise Ended(signal_of(end), said) from None


def _check_work(work: Path, *, resume: bool, force: bool) -> None:
    from sleepc.train.checkpoint import checkpoints

    found = bool(checkpoints(work))
    if resume and not found:
        raise UsageError("there is no training to resume", where=str(work), fix="Leave --resume out.")
    if found and not resume and not force:
        raise UsageError(
            "a training was stopped here, or its result was not kept",
            where=str(work),
            fix="--resume continues it (with --force, its result is kept even if worse); --force alone restarts.",
        )


class _Live:
    """What is shown of a training: on a terminal a line that changes, elsewhere a line for every tenth."""

    def __init__(self, name: str, *, show: bool) -> None:
        self.name, self.show, self.started, self.seconds = name, show, time.perf_counter(), 0.0
        self.display = Display(err)
        self.bar: Progress | None = None
        self.task: Any = None
        self.tenth = -1

    def stopping(self) -> None:
        """A signal came."""
        if self.show:
            err.print("stopping after this step; Ctrl-C again aborts it")

    @contextmanager
    def shown(self) -> Iterator[None]:
        with self.display.doing(self.name):
            try:
                yield
            finally:
                if self.bar is not None:
                    self.bar.stop()
                self.seconds = time.perf_counter() - self.started

    def start(self, trainer: Trainer) -> None:
        """The steps begin; some may be done."""
        if not self.show:
            return
        if trainer.done:
            err.print(f"resuming after step {trainer.done} of {trainer.of}")
        if not err.is_terminal:
            return
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        if self.display.status is not None:
            self.display.status.stop()
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"))
        self.bar = Bar(*columns, TimeRemainingColumn(), console=err, transient=True)
        self.task = self.bar.add_task(self.name, total=trainer.of, completed=trainer.done, figures="")
        self.bar.start()

    def studying(self, share: float) -> None:
        """The teacher asks itself, before the first step."""
        if self.show:
            self.display("the teacher asks itself", share)

    def judging(self, share: float) -> None:
        """It is measured on what was held out."""
        if self.bar is not None:
            self.bar.update(self.task, description="held out", figures=f"{share:.0%}")

    def step(self, step: Step) -> None:
        """A step is done."""
        if not self.show:
            return
        shares = "" if step.exact is None else f" · right {step.right:.2f} · exact {step.exact:.2f}"
        line = f"loss {step.loss:.4f}{shares} · {step.tokens_per_second:.0f} tok/s"
        if self.bar is not None:
            name = step.stage if step.eviction == "own" else f"{step.stage} ({step.eviction} eviction)"
            self.bar.update(self.task, completed=step.step, description=name, figures=f"{step.step}/{step.of} {line}")
        elif step.step * 10 // step.of > self.tenth:
            self.tenth = step.step * 10 // step.of
            err.print(f"{step.stage:9} step {step.step} of {step.of} · {line}")


def _tell(outcome: Outcome, target: Path, work: Path, seconds: float, following: str, *, as_json: bool) -> None:
    if as_json:
        facts = {"output": str(target) if outcome.kept else None, "work": str(work), "seconds": seconds}
        print_json({**outcome.to_json(), **facts})
        return
    if not outcome.of:
        err.print("stopped while the teacher asked itself: the same command continues from there")
        return
    if not outcome.finished:
        err.print(f"stopped after step {outcome.steps} of {outcome.of}: the same command with --resume continues")
        return
    for stage, (first, last) in outcome.losses.items():
        out.print(f"{stage:9} loss {first:.4f} → {last:.4f}")
    if outcome.held_out is not None:
        out.print(f"held out  {outcome.held_out.told()}   [dim]{outcome.held_out.where}[/]")
    out.print(
        f"trained   {number(outcome.trained)} parameters on {number(outcome.tokens)} tokens   [dim]{seconds:.1f} s[/]"
    )
    adapter = f"adapter   {outcome.adapter}   metrics" if outcome.adapter else "metrics  "
    out.print(f"{adapter} {work / 'metrics.jsonl'}")
    if outcome.kept:
        out.print(f"next      {following or _usual(target)}")
        return
    err.print("error: nothing is saved: the training made things worse")
    err.print("       Try a smaller learning rate or more text, with --force to start over.")
    err.print("       The same command with --resume --force saves it anyway, without training again.")


def _usual(target: Path) -> str:
    return f'sleepc eval {typed(target)} --task perplexity   ·   sleepc run {typed(target)} "…"'
