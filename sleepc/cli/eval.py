"""`sleepc eval ARTIFACT --task TASK`."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sleepc.cli.asked import DISTANCES, EXAMPLES, STREAMS, Evaluation, prepare, read_asked
from sleepc.cli.display import Display, err, number, out, print_json
from sleepc.cli.options import Artifact, Backend, Device
from sleepc.cli.tasks import Settings
from sleepc.errors import UsageError

if TYPE_CHECKING:
    from sleepc.tasks.task import Row

MOST_PASSES = 64
TITLES = {
    "exact": "examples with every answer right",
    "margin": "log p of the right answer over that of the others",
    "log_prob": "mean log p of the right tokens",
}
CONSTANT = "constant"  # the column of who always says the same
SHOWN = ("accuracy", "exact", "margin", "log_prob", "perplexity")


def evaluate(
    artifact: Artifact,
    task: Annotated[str, typer.Option(help="perplexity, retrieval, copy, or one that `sleepc tasks` lists.")],
    sweep: Annotated[
        str | None, typer.Option(help="Replay windows so often instead, one model for each: passes=1,2,4.")
    ] = None,
    against: Annotated[str | None, typer.Option(help="A model to measure full attention with.")] = None,
    text: Annotated[Path | None, typer.Option(help="A text file to read; Python's help topics by default.")] = None,
    distances: Annotated[
        str | None,
        typer.Option(help=f"How many windows ago ({DISTANCES}); perplexity reads as many as the largest."),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1, max=10_000, help=f"Streams, with one item at every distance ({STREAMS}), or examples ({EXAMPLES})."
        ),
    ] = None,
    settings: Settings = None,
    seed: Annotated[int, typer.Option(min=0, help="Of what is planted, and where.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="Draw the figures into this file (.svg or .png).")] = None,
    device: Device = "cpu",
    backend: Backend = "eager",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure what a model still knows by how long ago it was read, or what it makes of a task: converted, with memories
    off, and full attention.

    Of an ONNX export (--backend onnx) the converted model alone.
    """
    from sleepc.cli.subjects import subject_of
    from sleepc.tasks.plot import check_plot

    started = time.perf_counter()
    asked, passes = read_asked(task, samples, seed, distances, text, settings), _passes(sweep)
    if plot is not None:
        check_plot(plot)
    display = Display(err)
    subject = subject_of(artifact, backend, passes, against, device, display)
    with display.doing("eval"):
        found = prepare(subject, asked)
        for model, steps, limit in subject.models(found.task.length):
            found.rows[model] = found.task.rows(steps(), limit, partial(display, model))
            _note(found, model, limit)
    seconds = time.perf_counter() - started
    if plot is not None:
        _draw(plot, found, f"{task}: {artifact.resolve().name}, {_streams(asked.samples)}")
    facts = {"artifact": str(artifact), "samples": asked.samples, "seed": seed, "text": str(text) if text else None}
    if as_json:
        print_json({**facts, **to_json(found), "seconds": seconds})
    else:
        _tables(found, asked.samples, seconds)


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


def _draw(plot: Path, found: Evaluation, title: str) -> None:
    from sleepc.tasks.plot import draw_plot
    from sleepc.whole_file import write_whole

    task, kind = found.task, plot.suffix.lower()[1:]
    write_whole(plot, draw_plot(found.rows, task.metrics[0], found.window, title, kind, task.chance, task.by))


def _note(found: Evaluation, model: str, limit: int) -> None:
    if limit < found.task.length:
        found.notes.append(f"{model}: the model has {limit} positions, and streams have {found.task.length} tokens")


def to_json(found: Evaluation) -> dict[str, Any]:
    """Plain data."""
    rows = [{"model": model, **row} for model, all_rows in found.rows.items() for row in all_rows]
    task = found.task
    facts: dict[str, Any] = {
        "task": found.name,
        "window": found.window,
        "tokens": task.length,
        "metrics": list(task.metrics),
    }
    if found.settings is not None:
        facts["settings"] = found.settings
    return {**facts, "models": list(found.rows), "chance": task.chance, "rows": rows, "notes": found.notes}


def _tables(found: Evaluation, samples: int, seconds: float) -> None:
    from rich.table import Table

    for metric in (m for m in found.task.metrics if m in SHOWN):
        table = Table(box=None, pad_edge=False, title=TITLES.get(metric, metric))
        places: dict[str, dict[str, str]] = {}
        for model, rows in found.rows.items():
            for row in rows:
                shown = places.setdefault(_place(row, found), {})
                shown[model] = f"{row[metric]:.2f}"
                if f"constant_{metric}" in row:
                    shown[CONSTANT] = f"{row[f'constant_{metric}']:.2f}"
        columns = [*found.rows, *([CONSTANT] if any(CONSTANT in shown for shown in places.values()) else [])]
        for name in (found.task.by, *columns):
            table.add_column(name, justify="right")
        for place, figures in places.items():
            table.add_row(place, *(figures.get(column, "–") for column in columns))
        out.print(table)
    chance = f" · chance {found.task.chance:.2f}" if found.task.chance is not None else ""
    out.print(f"{_streams(samples)} of {number(found.task.length)} tokens{chance}   {seconds:.1f} s")
    for note in found.notes:
        out.print(f"[dim]{note}[/]")


def _streams(count: int) -> str:
    return f"{count} stream{'s' if count > 1 else ''}"


def _place(row: Row, found: Evaluation) -> str:
    if "from" in row:
        return f"{row['from']}–{row['to']}"
    windows = f" ({row['distance'] / found.window:g} windows)" if "distance" in row else ""
    return f"{row[found.task.by]}{windows}"
