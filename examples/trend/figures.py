"""What came out of an experiment: rows, tables and pictures, over steps and over time."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples.trend.experiment import Experiment, Run
from examples.trend.training import Lines, Row, folder_of
from sleepc.tasks.puzzle import examples

METRICS = {"exact": "all bits right", "accuracy": "right answers"}


def show(e: Experiment, work: Path) -> None:
    """Write results.jsonl and plot.svg, and print tables."""
    rows = collect(e, work)
    Lines(work / "results.jsonl").write(rows)
    draw(e, rows, work / "plot.svg")
    print(f"\n{tables(e, rows)}\n\n{work / 'results.jsonl'}, {work / 'plot.svg'}")


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
