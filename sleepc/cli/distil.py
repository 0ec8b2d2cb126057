"""`sleepc distil ARTIFACT --text FILES`."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sleepc.cli.display import Display, err, number, out, print_json
from sleepc.cli.options import Artifact
from sleepc.errors import UsageError

if TYPE_CHECKING:
    from rich.progress import Progress

    from sleepc.api import Program
    from sleepc.train.trainer import Step, Trainer
    from sleepc.train.training import Outcome

INTERRUPTED = 130
Text = Annotated[
    list[Path] | None,
    typer.Option(help="A text file, a .jsonl file, or a folder of them; may be given several times."),
]


def distil(
    artifact: Artifact,
    text: Text = None,
    dataset: Annotated[str | None, typer.Option(help="A data set of Hugging Face's: NAME or NAME:SPLIT.")] = None,
    field: Annotated[str, typer.Option(help="Where rows of .jsonl files and data sets have their text.")] = "text",
    own: Annotated[bool, typer.Option("--self", help="Learn from texts that the teacher writes.")] = False,
    teacher: Annotated[
        str | None, typer.Option(help="A model with the same vocabulary; the original by default.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The artifact directory to make; without it ARTIFACT is replaced."),
    ] = None,
    stages: Annotated[
        str | None,
        typer.Option(
            help="align, distil, lengthen, in this order, with shares of the tokens if need be: align:1,distil:3.",
            show_default="distil; where attention was replaced align,distil",
        ),
    ] = None,
    train: Annotated[
        str | None,
        typer.Option(
            help="new (what the conversion added), low-rank (maps beside the weights, too) or all.", show_default="new"
        ),
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Of low-rank maps.", show_default="8")] = None,
    tokens: Annotated[int | None, typer.Option(help="Tokens to read in all.", show_default="250000")] = None,
    length: Annotated[int | None, typer.Option(help="Tokens of a piece of text.", show_default="768")] = None,
    batch: Annotated[int | None, typer.Option(help="Pieces of a step.", show_default="1")] = None,
    accumulate: Annotated[
        int | None, typer.Option(help="Parts of a batch, one after another.", show_default="1")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of memories.", show_default="0.002")] = None,
    low_rank_lr: Annotated[float | None, typer.Option(help="Of low-rank maps.", show_default="0.001")] = None,
    weights_lr: Annotated[float | None, typer.Option(help="Of the source's weights.", show_default="1e-05")] = None,
    hard: Annotated[
        float | None, typer.Option(help="Share of stage distil that evicts hard.", show_default="0")
    ] = None,
    recall: Annotated[
        float | None,
        typer.Option(help="Share of pieces with stretches that come again beyond the window.", show_default="0.5"),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(help="fresh (untrained memories are set to learn fast) or kept.", show_default="fresh"),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="auto, float32 or bfloat16 (for linear maps).", show_default="auto")
    ] = None,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Compute activations again: less memory, more time.")
    ] = False,
    truncate: Annotated[
        int | None, typer.Option(help="Windows that gradients go back, 0 for all.", show_default="0")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the order of the text.", show_default="0")] = None,
    save_every: Annotated[int | None, typer.Option(help="Steps between checkpoints.", show_default="50")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    merge: Annotated[bool, typer.Option("--merge", help="Merge low-rank maps into the weights at the end.")] = False,
    half: Annotated[bool, typer.Option("--half", help="Write the adapter in float16: half the size.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Start anew where a training was stopped; replace an artifact at -o.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.", show_default="cuda where there is one")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Train a converted model's memories to give what its original gives, from texts, with sleeps in the loop."""
    from sleepc import api
    from sleepc.artifact import check_free
    from sleepc.train.checkpoint import forget_checkpoints
    from sleepc.train.training import Hooks

    if sum((bool(text), dataset is not None, own)) != 1:
        raise UsageError(
            "what shall it read?", where="sleepc distil", fix="Give one of --text FILE, --dataset NAME or --self."
        )
    target = output or artifact
    program = api.load(artifact)
    given: dict[str, Any] = {
        "stages": stages or ("align,distil" if _replaces(program) else "distil"),
        "train": train,
        "rank": rank,
        "tokens": tokens,
        "length": length,
        "batch": batch,
        "accumulate": accumulate,
        "lr": lr,
        "low_rank_lr": low_rank_lr,
        "weights_lr": weights_lr,
        "hard": hard,
        "recall": recall,
        "start": start,
        "precision": precision,
        "checkpointing": checkpointing,
        "truncate": truncate,
        "seed": seed,
        "save_every": save_every,
    }
    check_free(target, force=force or output is None)  # before any work
    work = target.resolve().with_name(f"{target.resolve().name}.training")
    first = int(os.environ.get("RANK", "0")) == 0  # of several processes
    if first:
        _check_work(work, resume=resume, force=force)
    live = _Live(show=first and not as_json)
    with live.shown(), _stopping(live) as stopped:
        outcome = program.distil(
            text=text or (),
            dataset=dataset,
            field=field,
            teacher=teacher,
            work=work,
            resume=resume,
            device=device,
            half=half,
            progress=live.display,
            hooks=Hooks(live.start, live.step, stopped),
            **{name: value for name, value in given.items() if value is not None},
        )
        if outcome.finished and merge:
            program.merge()
        if outcome.finished and first:
            program.save(target, force=True, progress=live.display)
            forget_checkpoints(work)
    if first:
        _tell(outcome, target, work, live.seconds, as_json=as_json)
    if not outcome.finished:
        raise typer.Exit(INTERRUPTED)


def _replaces(program: Program) -> bool:
    return any(plan.strategy == "replace" for plan in program.recipe.plan(len(program.graphs.layout)))


def _check_work(work: Path, *, resume: bool, force: bool) -> None:
    from sleepc.train.checkpoint import checkpoints

    found = bool(checkpoints(work))
    if resume and not found:
        raise UsageError("there is no training to go on with", where=str(work), fix="Leave --resume out.")
    if found and not resume and not force:
        raise UsageError(
            "a training was stopped here",
            where=str(work),
            fix="--resume goes on with it; --force starts anew.",
        )
    if work.exists() and not resume:
        shutil.rmtree(work)


class _Live:
    """What is seen of a training: on a terminal a line that moves, elsewhere a line for every tenth."""

    def __init__(self, *, show: bool) -> None:
        self.show, self.started, self.seconds = show, time.perf_counter(), 0.0
        self.display = Display(err)
        self.bar: Progress | None = None
        self.task: Any = None
        self.tenth = -1

    @contextmanager
    def shown(self) -> Iterator[None]:
        with self.display.doing("distil"):
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
            err.print(f"going on after step {trainer.done} of {trainer.of}")
        if not err.is_terminal:
            return
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        if self.display.status is not None:
            self.display.status.stop()
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"))
        self.bar = Bar(*columns, TimeRemainingColumn(), console=err, transient=True)
        self.task = self.bar.add_task("distil", total=trainer.of, completed=trainer.done, figures="")
        self.bar.start()

    def step(self, step: Step) -> None:
        """A step is done."""
        if not self.show:
            return
        line = f"loss {step.loss:.4f} · {step.tokens_per_second:.0f} tok/s"
        if self.bar is not None:
            name = step.stage if step.eviction == "own" else f"{step.stage} ({step.eviction} eviction)"
            self.bar.update(self.task, completed=step.step, description=name, figures=f"{step.step}/{step.of} {line}")
        elif step.step * 10 // step.of > self.tenth:
            self.tenth = step.step * 10 // step.of
            err.print(f"{step.stage:9} step {step.step} of {step.of} · {line}")


@contextmanager
def _stopping(live: _Live) -> Iterator[Any]:
    """Ctrl-C asks the training to stop after its step; a second one interrupts. Yields what says whether it was asked."""
    asked = False

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        if live.show:
            err.print("stopping after this step; Ctrl-C once more gives it up")

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


def _tell(outcome: Outcome, target: Path, work: Path, seconds: float, *, as_json: bool) -> None:
    if as_json:
        facts = {"output": str(target) if outcome.finished else None, "work": str(work), "seconds": seconds}
        print_json({**outcome.to_json(), **facts})
        return
    if not outcome.finished:
        err.print(f"stopped after step {outcome.steps}: the same command with --resume goes on")
        return
    for stage, (first, last) in outcome.losses.items():
        out.print(f"{stage:9} loss {first:.4f} → {last:.4f}")
    out.print(
        f"trained   {number(outcome.trained)} parameters on {number(outcome.tokens)} tokens   [dim]{seconds:.1f} s[/]"
    )
    out.print(f"adapter   {outcome.adapter}   metrics {work / 'metrics.jsonl'}")
    out.print(f'next      sleepc eval {target} --task perplexity   ·   sleepc run {target} "…"')
