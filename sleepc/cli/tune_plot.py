"""What was measured as a picture, by matplotlib: ways to run, and beside them ways to sleep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sleepc.tasks.plot import drawn
from sleepc.tune.choose import Selection
from sleepc.tune.record import Entry
from sleepc.tune.report import COLOURS, Scatter, candidates_of, schedules_of
from sleepc.tune.schedules import Schedules

MARKS = {"other": "measured", "front": "nothing beats it in everything", "chosen": "chosen"}


def drawn_choice(
    title: str, entries: Sequence[Entry], choice: Selection, schedules: Schedules | None, kind: str
) -> bytes:
    """An SVG or PNG (`kind`): schedules if there are any, since they are what a person decides; else candidates."""
    scatter = candidates_of(entries, choice) if schedules is None else schedules_of(schedules)

    def draw(axes: Any) -> None:
        _scatter(axes, scatter)
        axes.set(title=title, xlabel=scatter.x, ylabel=scatter.y)
        for ticks, limit in ((scatter.ticks("x"), axes.set_xlim), (scatter.ticks("y"), axes.set_ylim)):
            limit(ticks[0], ticks[-1])
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)

    return drawn(draw, (8, 4.5), kind)


def _scatter(axes: Any, scatter: Scatter) -> None:
    """Points by kind, with the names of those that matter."""
    middle = sum(scatter.ticks("x")[:: len(scatter.ticks("x")) - 1]) / 2
    for kind, label in MARKS.items():
        dots = [dot for dot in scatter.dots if dot.kind == kind]
        if not dots:
            continue
        axes.scatter([dot.x for dot in dots], [dot.y for dot in dots], color=COLOURS[kind], label=label, zorder=2)
        for dot in dots:
            if kind != "other":
                side, off = ("right", -6) if dot.x > middle else ("left", 6)
                text = {"textcoords": "offset points", "fontsize": 7, "ha": side}
                axes.annotate(dot.name, (dot.x, dot.y), (off, 5), **text)
