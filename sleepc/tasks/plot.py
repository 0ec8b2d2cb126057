"""Figures by distance as a picture, by matplotlib: one line for each model."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sleepc.errors import UsageError
from sleepc.output_place import check_file_place
from sleepc.tasks.task import Row

STARTS = {".svg": (b"<?xml", b"<svg"), ".png": (b"\x89PNG",)}


def check_plot(path: Path) -> None:
    """Raises UsageError, before any work, if a plot cannot be made or written: no matplotlib, another kind of file,
    no folder, or a file that is something else.
    """
    kind = path.suffix.lower()
    if kind not in STARTS:
        raise UsageError(f"cannot plot into {path.name}", where="--plot", fix="Name a file that ends in .svg or .png.")
    if find_spec("matplotlib") is None:
        raise UsageError("plots need matplotlib", where="--plot", fix="pip install 'sleepc[plot]'")
    check_file_place(path, "--plot")
    if path.exists() and not _starts_as(path, STARTS[kind]):
        raise UsageError(f"{path} exists and is not a plot", where="--plot", fix="Choose another name.")


def _starts_as(path: Path, starts: tuple[bytes, ...]) -> bool:
    with path.open("rb") as file:
        return file.read(8).startswith(starts)


@dataclass(frozen=True)
class Plot:
    """`metric` over `by`, what rows are told apart by, for each model's rows; if that is tokens, the window is
    marked.
    """

    title: str
    rows: Mapping[str, Sequence[Row]]
    metric: str
    by: str
    window: int
    chance: float | None = None


def draw_plot(plot: Plot, kind: str) -> bytes:
    """An SVG or PNG (`kind`)."""

    def draw(axes: Any) -> None:
        for i, (name, found) in enumerate(plot.rows.items()):
            style = "--" if name == "sliding" else ":" if name == "full" else "-"
            at, heights = [_place(row, plot.by) for row in found], [row[plot.metric] for row in found]
            axes.plot(at, heights, "osv^D*P"[i % 7] + style, label=name)
        places = sorted({_place(row, plot.by) for found in plot.rows.values() for row in found})
        axes.set_xscale("log", base=2)
        axes.set_xticks(places, [f"{place:.0f}" for place in places])
        if plot.chance is not None:
            axes.axhline(plot.chance, color="grey", linewidth=0.8, label="chance")
        axes.set(title=plot.title, ylabel=plot.metric, xlabel=plot.by)
        if plot.by in ("distance", "tokens"):
            axes.axvline(plot.window, color="grey", linewidth=0.8, linestyle=":")
            axes.set_xlabel(f"tokens (the dotted line is the window, {plot.window})")
        axes.grid(alpha=0.3)
        axes.legend()

    return drawn(draw, (7, 4), kind)


def drawn(draw: Callable[[Any], None], size: tuple[float, float], kind: str) -> bytes:
    """What `draw` puts on axes (matplotlib's) of so many inches, as SVG or PNG (`kind`): the same bytes each time."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "sleepc", "svg.fonttype": "none"}):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure.add_subplot())
        out = io.BytesIO()
        figure.savefig(out, format=kind, metadata={"Date": None} if kind == "svg" else None, dpi=120)
    return out.getvalue()


def _place(row: Row, by: str) -> float:
    """How long ago (a distance, or the end of a range), or how deep."""
    return row["to"] if by == "tokens" else row[by]
