"""`sleepc eval ARTIFACT --task TASK`."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleepc.cli.display import Display, err, number, out, print_json
from sleepc.cli.eval_options import EvalOptions
from sleepc.cli.evaluation_task import QUESTIONS, Evaluation, prepare, read_asked
from sleepc.cli.option_groups import with_options
from sleepc.cli.options import Runnable, RunsOn
from sleepc.errors import UsageError

if TYPE_CHECKING:
    from sleepc.tasks.task import Row

MOST_PASSES = 64
TITLES = {
    "exact": "examples with every answer right",
    "margin": "log p of the right answer over that of the others",
    "log_prob": "mean log p of the right tokens",
}
CONSTANT = "constant"  # the column of always giving the same answer
SHOWN = ("accuracy", "exact", "margin", "log_prob", "perplexity")


@with_options
def evaluate(artifact: Runnable, options: EvalOptions) -> None:
    """Measure what a model still knows by how long ago it was read, or how well it solves a task: converted, with memories off, and with full attention.

    With an export, only the converted model is measured.
    """
    from sleepc.cli.subjects import subject_of
    from sleepc.tasks.plot import check_plot

    started = time.perf_counter()
    if _evaluated_otherwise(artifact, options, started):
        return
    text, seed, plot = options.text, options.seed, options.plot
    asked = read_asked(options.task, options.samples, seed, options.distances, text, options.settings)
    passes = _passes(options.sweep)
    if plot is not None:
        check_plot(plot)
    display = Display(err)
    on = RunsOn(
        device=options.device,
        backend=options.backend,
        compile=options.compile,
        tuned=options.tuned,
        native_code=options.native_code,
    )
    subject = subject_of(artifact, on, passes, options.against, display)
    with display.doing("eval"):
        found = prepare(subject, asked)
        for model, steps, limit in subject.models(found.task.length):
            found.rows[model] = found.task.rows(steps(), limit, partial(display, model))
            _note(found, model, limit)
    seconds = time.perf_counter() - started
    if plot is not None:
        _draw(plot, found, f"{options.task}: {artifact.resolve().name}, {_streams(asked.samples)}")
    if options.as_json:
        facts = {"artifact": str(artifact), **subject.facts(), "samples": asked.samples, "seed": seed}
        print_json({**facts, "text": str(text) if text else None, **to_json(found), "seconds": seconds})
    else:
        _tables(found, asked.samples, seconds)


def _evaluated_otherwise(artifact: Path, options: EvalOptions, started: float) -> bool:
    """Has what was asked been tasks of the harness, or questions about texts? Raises UsageError if no task is given, and
    for options of tasks of another kind.
    """
    from sleepc.tasks.ruler import RULER

    if options.harness is not None:
        from sleepc.cli.harness import evaluate_by_harness

        evaluate_by_harness(artifact, options, started)
        return True
    if not options.task:
        fix = "Give --task with one of `sleepc tasks`, or --harness with tasks of lm-evaluation-harness."
        raise UsageError("no task is given", where="--task", fix=fix)
    _refuse(options.task, ("--harness-folder", options.harness_folder), ("--batch", options.batch))
    if options.task in (QUESTIONS, *RULER):
        from sleepc.cli.questions import evaluate_questions

        evaluate_questions(artifact, options, started)
        return True
    _refuse(options.task, ("--questions", options.questions), ("--answer", options.answer))
    return False


def _refuse(task: str, *given: tuple[str, Any]) -> None:
    for option, value in given:
        if value is not None:
            raise UsageError(f"{task} does not take {option}", where=option, fix=f"Leave {option} out.")


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


def _draw(file: Path, found: Evaluation, title: str) -> None:
    from sleepc.tasks.plot import Plot, draw_plot
    from sleepc.whole_file import write_whole

    task = found.task
    plot = Plot(title, found.rows, task.metrics[0], task.by, found.window, task.chance)
    write_whole(file, draw_plot(plot, file.suffix.lower()[1:]))


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
