"""`sleepc calibrate ARTIFACT --text FILE`, and `--only budgets`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from sleepc.cli.display import Display, counted, err, number, out, print_json
from sleepc.cli.ending import ENDS, STARTS_OVER, Ended, signal_of
from sleepc.cli.opening import alone_at
from sleepc.cli.option_groups import flag, several, switch, with_options
from sleepc.cli.options import TEXTS, Artifact

if TYPE_CHECKING:
    from sleepc.train.calibrate import CalibrationReport
    from sleepc.train.layer_files import LayerReport, Range

TOKENS, STEPS = 2048, 100


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions:
    """What memories are set by, and where the program goes."""

    text: list[Path] | None = several(TEXTS, each="<path>")
    only: str | None = flag(
        "budgets: measure what the score of kept pairs needs, share out their slots among KV heads again, and train nothing; --text is then optional.",
        metavar="budgets",
    )
    plot: Path | None = flag("With --only budgets, plot the budgets into this file (.svg or .png).")
    output: Path | None = flag("The artifact directory to make; without it ARTIFACT is replaced.", "--output", "-o")
    tokens: int = flag(
        "Tokens to learn from; as many again are held out to decide what is kept.", default=TOKENS, min=1
    )
    steps: int = flag("Local steps per layer; 0 only sets gates.", default=STEPS, min=0)
    against: str | None = flag("The original model, if it has moved.")
    resume: bool = switch("Skip the layers that were finished before an interruption.", "--resume")
    force: bool = switch("Replace an existing artifact at -o.", "--force")
    as_json: bool = switch("Print one JSON object.", "--json")


@with_options
def calibrate(artifact: Artifact, options: CalibrateOptions) -> None:
    """Set memories from what the original attends to, then train each layer alone towards it. Takes minutes on a laptop."""
    from sleepc import api
    from sleepc.cli.budgets import Sharing, share
    from sleepc.train.layer_files import forget

    _check(options)
    target, replace = options.output or artifact, options.force or options.output is None
    if options.only is not None:
        plot, as_json = options.plot, options.as_json
        share(Sharing(artifact, options.text or [], target, replace, options.against, plot, as_json))
        return
    program = api.load(artifact)
    display = Display(err)
    work = target.resolve().with_name(f".{target.resolve().name}.calibration")
    with alone_at(target, program, "calibrate", force=replace):
        with display.doing("calibrate"), _ended(work):
            if options.against is not None:
                program.captured(display, program.load_original(options.against, display))
            report = program.calibrate(
                options.text or [],
                tokens=options.tokens,
                steps=options.steps,
                work=work,
                resume=options.resume,
                progress=display,
            )
        if report.kept:
            with display.doing("save"), _ended(work):
                program.save(target, force=replace, progress=display)
        forget(work)
    if options.as_json:
        print_json({"artifact": str(artifact), "output": str(target) if report.kept else None, **report.to_json()})
    else:
        _tell(report, target)
    if not report.kept:
        raise typer.Exit(1)


def _check(options: CalibrateOptions) -> None:
    """Raises UsageError for options that do not go together."""
    from sleepc.errors import UsageError

    if options.only is None:
        if not options.text:
            raise UsageError("no text is given", where="--text", fix="Give one: --text FILE.")
        if options.plot is not None:
            raise UsageError("only budgets are drawn", where="--plot", fix="Leave it out, or add --only budgets.")
        return
    if options.only != "budgets":
        raise UsageError(f"{options.only!r} cannot be measured alone", where="--only", fix="--only budgets.")
    trains = {"--tokens": options.tokens != TOKENS, "--steps": options.steps != STEPS, "--resume": options.resume}
    for name, given in trains.items():
        if given:
            raise UsageError("nothing is trained with --only budgets", where=name, fix="Leave it out.")


@contextmanager
def _ended(work: Path) -> Iterator[None]:
    """If it is interrupted, say what is kept of it."""
    from sleepc.train.layer_files import FINISHED, forget

    try:
        yield
    except ENDS as end:
        done = len(list(work.glob(FINISHED)))
        if not done and work.is_dir():
            forget(work)
        kept = f"{counted(done, 'layer')} finished: the same command with --resume continues from there"
        raise Ended(signal_of(end), kept if done else STARTS_OVER) from None


def _tell(report: CalibrationReport, target: Path) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, title="local error on held-out text")
    for name in ("layer", "looks back", "half-life", "β", "no memory", "before", "gates", "steps"):
        table.add_column(name, justify="right")
    table.add_column("kept")
    for layer in report.layers:
        table.add_row(*_row(layer))
    out.print(table)
    figures = report.perplexity
    out.print(
        f"perplexity beyond {number(report.window)} tokens   no memory {figures['control']:.3f} · before "
        f"{figures['before']:.3f} · after {figures['after']:.3f}"
    )
    for note in report.notes:
        out.print(f"[dim]{note}[/]")
    where = str(target) if report.kept else "nothing is saved: it does not help"
    out.print(f"{where}   [dim]{number(report.tokens)} tokens, {report.seconds:.1f} s[/]")


def _row(layer: LayerReport) -> list[str]:
    return [
        str(layer.layer),
        _range(layer.distance, 0),
        _range(layer.half_life, 0) if layer.half_life else "–",
        _range(layer.beta, 2),
        f"{layer.control:.4f}",
        f"{layer.before:.4f}",
        f"{layer.gates:.4f}",
        "–" if layer.steps is None else f"{layer.steps:.4f}",
        ", ".join(layer.kept) or "nothing",
    ]


def _range(of: Range, digits: int) -> str:
    low, high = (f"{x:.{digits}f}" for x in of)
    return low if low == high else f"{low}–{high}"
