"""Which memory, written how? Every rule and every consolidation on the same work (docs/choosing.md).

scratch: a small transformer is trained for each, on two tasks (benchmarks/compared_scratch.py).
smollm2: SmolLM2-135M is converted with each, and measured as it is and trained (benchmarks/compared_smollm2.py).

It goes on where it was stopped: what is in `--work` is not measured again. `--grid` tries every rule with every
consolidation, `--cells` some of them by name.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the examples, wherever it is started from

from common import Row, add_letters, arguments, checkpoint_of, machine, report, some_of
from compared_cells import Options, cells
from compared_scratch import TASKS, trained
from compared_smollm2 import ALONE, KEEP, Comparison

PARTS = ("scratch", "smollm2")
RUINED = 1.5  # times the least surprise: not in the picture
COLUMNS = ("kind", "cell", "seed", "trained", "pairs 8", "hops 1", "hops 2", "half_at", "step_ms")
COLUMNS += ("nats", "answered", "counted", "codes", "sleep_ms", "wake_ms", "state_bytes", "refused")


def main() -> None:
    """Run the benchmark."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--parts", type=some_of(PARTS), default=list(PARTS), help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--cells", help="some of the cells, with semicolons between them")
    parser.add_argument("--grid", action="store_true", help="every rule with every consolidation")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each cell from scratch")
    parser.add_argument("--tasks", type=some_of(TASKS), default=list(TASKS), help="of the part from scratch")
    parser.add_argument("--workers", type=int, default=2, help="trainings side by side, a core for each")
    parser.add_argument("--work", type=Path, default=Path("build/consolidations"), help="folder of what was measured")
    parser.add_argument("--window", type=int, default=128, help="of SmolLM2, in tokens")
    parser.add_argument("--keep", type=int, default=128, help="pairs for every KV head that are compared")
    parser.add_argument("--tokens", type=int, default=15_360, help="of the training of SmolLM2; 0: none")
    parser.add_argument("--texts", type=int, default=3, help="of the project's, whose questions are asked")
    parser.add_argument("--held", type=int, default=8, help="pieces whose surprise is measured")
    parser.add_argument("--length", type=int, default=768, help="tokens of such a piece, and of one to train on")
    parser.add_argument("--plot", type=Path, help="draw quality against bytes and against a sleep's time")
    options = parser.parse_args()
    with TemporaryDirectory(prefix="sleepc-compared-") as scratch:
        if options.tiny:
            options.work, options.window, options.keep, options.tokens = Path(scratch), 32, 4, 64
            options.held, options.length = 2, 96
        rows = list(measured(options))
    if options.plot:
        draw(rows, options.plot)
    report(rows, as_json=options.json, title="memories and consolidations", columns=COLUMNS)


def measured(options: argparse.Namespace) -> Iterator[Row]:
    """The machine, and a row for each cell."""
    yield machine()
    own: dict[str, Options] = {ALONE: {}, KEEP: {"keep": {"slots": options.keep}}}
    chosen = {**own, **cells(grid=options.grid)}
    if options.cells:
        chosen = named(options.cells.split(";"), chosen)
    if "scratch" in options.parts:
        rows = trained({name: recipe for name, recipe in chosen.items() if name not in own}, options)
        if rows is None:
            raise SystemExit(130)
        yield from rows
    if "smollm2" in options.parts:
        with checkpoint_of(options) as checkpoint:
            if options.tiny:
                add_letters(checkpoint.folder)
            yield from Comparison(checkpoint.folder, options.work, options).rows(chosen)


def named(names: Sequence[str], chosen: dict[str, Options]) -> dict[str, Options]:
    """Those cells."""
    unknown = [name for name in names if name not in chosen]
    if unknown:
        raise SystemExit(f"--cells {unknown[0]!r} is none of: {'; '.join(chosen)}")
    return {name: chosen[name] for name in names}


def draw(rows: Sequence[Row], path: Path) -> None:
    """Surprise beyond the window and questions answered, against bytes of state and against a sleep's time."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    every = [row for row in rows if row["kind"] == "smollm2" and "sleep_ms" in row]
    least = min(row["nats"] for row in every)
    found = [row for row in every if row["nats"] < RUINED * least]
    left_out = "; ".join(f"{row['cell']} {row['nats']:.1f}" for row in every if row not in found)
    with mpl.rc_context({"svg.hashsalt": "sleepc", "svg.fonttype": "none"}):  # the same rows give the same bytes
        figure = Figure(figsize=(11, 8), layout="constrained")
        FigureCanvasSVG(figure)
        grid = figure.subplots(2, 2)
        for line, (y, label) in zip(grid, (("nats", "surprise, nats a token"), ("answered", "answered")), strict=True):
            for axes, (x, unit, scale) in zip(
                line, (("state_bytes", "state, MB", 1e-6), ("sleep_ms", "a sleep, ms", 1.0)), strict=True
            ):
                for row in found:
                    colour = "C1" if row["trained"] else "C0"
                    axes.plot(row[x] * scale, row[y], "o", color=colour, markersize=4)
                    place = (row[x] * scale, row[y])
                    axes.annotate(row["cell"], place, fontsize=5, xytext=(3, 2), textcoords="offset points")
                axes.set(xlabel=unit, ylabel=label)
                axes.grid(alpha=0.3)
        title = "blue: as converted, orange: trained" + (f"\nruined, not shown: {left_out}" if left_out else "")
        grid[0][0].set_title(title, fontsize=8)
        figure.savefig(path, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
