"""`sleepc eval ARTIFACT --task TASK`."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from sleepc.cli.display import Display, err, number, out, print_json
from sleepc.cli.options import Artifact, Backend, Device
from sleepc.cli.verify import read_text
from sleepc.errors import UsageError

if TYPE_CHECKING:
    from sleepc.cli.subjects import Subject
    from sleepc.tasks.source import Source
    from sleepc.tasks.task import Row, Task, TaskName

DISTANCES = "0.5,1,2,4,8"
MOST_PASSES = 64
ROOM = 64  # random tokens of a stream beside those of its distances: more than anything that is planted has
TITLES = {"margin": "log p of the right answer over that of the others", "log_prob": "mean log p of the right tokens"}
SHOWN = ("accuracy", "margin", "log_prob", "perplexity")


@dataclass
class Evaluation:
    """A task, and the rows of every model that it was put to."""

    task: Task
    name: TaskName
    window: int
    rows: dict[str, list[Row]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def evaluate(
    artifact: Artifact,
    task: Annotated[str, typer.Option(help="perplexity, retrieval or copy.")],
    sweep: Annotated[
        str | None, typer.Option(help="Replay windows so often instead, one model for each: passes=1,2,4.")
    ] = None,
    against: Annotated[str | None, typer.Option(help="A model to measure full attention with.")] = None,
    text: Annotated[Path | None, typer.Option(help="A text file to read; Python's help topics by default.")] = None,
    distances: Annotated[
        str, typer.Option(help="How many windows ago; perplexity reads as many as the largest.")
    ] = DISTANCES,
    samples: Annotated[int, typer.Option(min=1, max=10_000, help="Streams, with one item at every distance.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Of what is planted, and where.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="Draw the figures into this file (.svg or .png).")] = None,
    device: Device = "cpu",
    backend: Backend = "eager",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure what a model still knows by how long ago it was read: converted, with memories off, and full attention.

    Of an ONNX export (--backend onnx) the converted model alone.
    """
    from sleepc.cli.subjects import subject_of
    from sleepc.tasks.plot import check_plot, draw_plot
    from sleepc.whole_file import write_whole

    started = time.perf_counter()
    name, passes, windows = _known_task(task), _passes(sweep), _windows(distances)
    if plot is not None:
        check_plot(plot)
    display = Display(err)
    subject = subject_of(artifact, backend, passes, against, device, display)
    with display.doing("eval"):
        found = _prepare(subject, name, windows, samples, seed, read_text(text))
        for model, steps, limit in subject.models(found.task.length):
            found.rows[model] = found.task.rows(steps(), limit, partial(display, model))
            _note(found, model, limit)
    seconds = time.perf_counter() - started
    if plot is not None:
        title = f"{name}: {artifact.resolve().name}, {_streams(samples)}"
        data = draw_plot(
            found.rows, found.task.metrics[0], found.window, title, plot.suffix.lower()[1:], found.task.chance
        )
        write_whole(plot, data)
    facts = {"artifact": str(artifact), "samples": samples, "seed": seed, "text": str(text) if text else None}
    if as_json:
        print_json({**facts, **to_json(found), "seconds": seconds})
    else:
        _tables(found, samples, seconds)


def _known_task(name: str) -> TaskName:
    from sleepc.tasks.task import TASKS

    if name not in TASKS:
        raise UsageError(f"there is no task {name!r}", where="--task", fix=f"Tasks: {', '.join(TASKS)}.")
    return cast("TaskName", name)


def _passes(sweep: str | None) -> list[int]:
    """`passes=1,2,4` as numbers; none for no sweep."""
    if sweep is None:
        return []
    key, _, values = sweep.partition("=")
    numbers = [int(v) for v in values.split(",") if v.isascii() and v.isdigit() and len(v) < 4]
    if key != "passes" or len(numbers) != values.count(",") + 1 or not all(1 <= n <= MOST_PASSES for n in numbers):
        raise UsageError(
            f"cannot sweep {sweep!r}", where="--sweep", fix=f"Give numbers of passes, 1 to {MOST_PASSES}: passes=1,2,4."
        )
    return list(dict.fromkeys(numbers))


def _windows(text: str) -> list[float]:
    """`0.5,1,2` as numbers, ascending."""
    try:
        found = sorted({float(part) for part in text.split(",")})
    except ValueError:
        found = []
    if not found or not all(0 < n <= 10_000 for n in found):
        raise UsageError(
            f"cannot read distances {text!r}", where="--distances", fix="Give numbers of windows above 0: 0.5,1,2,4."
        )
    return found


def _prepare(
    subject: Subject, name: TaskName, windows: list[float], samples: int, seed: int, text: str | None
) -> Evaluation:
    from sleepc.tasks.planting import Setup
    from sleepc.tasks.task import make_task

    window = subject.window
    distances = tuple(sorted({max(round(n * window), 1) for n in windows}))
    setup = Setup(distances, samples, subject.sinks, seed)
    source = _source(subject, text, samples * (2 * distances[-1] + setup.sinks + ROOM), seed)
    found = Evaluation(make_task(name, source, setup, window), name, window, notes=list(subject.notes))
    if source.tokenizer is None:
        found.notes.append("the model cannot read words: streams are random tokens")
    return found


def _source(subject: Subject, text: str | None, tokens: int, seed: int) -> Source:
    import numpy as np

    from sleepc.tasks.source import make_source

    try:
        tokenizer = subject.tokenizer()
    except UsageError:  # it has none
        if text is not None:
            raise
        tokenizer = None
    return make_source(tokenizer, text, subject.vocab, tokens, np.random.default_rng(seed))


def _note(found: Evaluation, model: str, limit: int) -> None:
    if limit < found.task.length:
        found.notes.append(f"{model}: the model has {limit} positions, and streams have {found.task.length} tokens")


def to_json(found: Evaluation) -> dict[str, Any]:
    """Plain data; figures that are infinite or NaN become texts, which JSON can hold."""
    rows = [
        {"model": model, **{k: v if math.isfinite(v) else str(v) for k, v in row.items()}}
        for model, all_rows in found.rows.items()
        for row in all_rows
    ]
    task = found.task
    facts = {"task": found.name, "window": found.window, "tokens": task.length, "metrics": list(task.metrics)}
    return {**facts, "models": list(found.rows), "chance": task.chance, "rows": rows, "notes": found.notes}


def _tables(found: Evaluation, samples: int, seconds: float) -> None:
    from rich.table import Table

    for metric in (m for m in found.task.metrics if m in SHOWN):
        by = "tokens" if metric == "perplexity" else "distance"
        table = Table(box=None, pad_edge=False, title=TITLES.get(metric, metric))
        for name in (by, *found.rows):
            table.add_column(name, justify="right")
        places: dict[str, dict[str, str]] = {}
        for model, rows in found.rows.items():
            for row in rows:
                places.setdefault(_place(row, found.window), {})[model] = f"{row[metric]:.2f}"
        for place, figures in places.items():
            table.add_row(place, *(figures.get(model, "–") for model in found.rows))
        out.print(table)
    chance = f" · chance {found.task.chance:.2f}" if found.task.chance is not None else ""
    out.print(f"{_streams(samples)} of {number(found.task.length)} tokens{chance}   {seconds:.1f} s")
    for note in found.notes:
        out.print(f"[dim]{note}[/]")


def _streams(count: int) -> str:
    return f"{count} stream{'s' if count > 1 else ''}"


def _place(row: Row, window: int) -> str:
    if "distance" in row:
        return f"{row['distance']} ({row['distance'] / window:g} windows)"
    return f"{row['from']}–{row['to']}"
