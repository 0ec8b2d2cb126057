"""`sleepc calibrate ARTIFACT --only budgets`: which KV head keeps how many pairs, as a picture, and what it is worth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sleepc.cli.display import Display, counted, err, number, out, print_json, size
from sleepc.cli.opening import alone_at

if TYPE_CHECKING:
    from sleepc.train.share_slots import BudgetsReport

SHADES = " ░▒▓█"


@dataclass(frozen=True)
class Sharing:
    """What is shared, from which texts, and where it goes: see the options of `calibrate`."""

    artifact: Path
    text: list[Path]
    target: Path
    replace: bool
    against: str | None
    plot: Path | None
    as_json: bool


def share(asked: Sharing) -> None:
    """Measure budgets, save the program with them, and say what was found."""
    from sleepc import api
    from sleepc.tasks.plot import check_plot
    from sleepc.train.slots_plot import draw_slots
    from sleepc.whole_file import write_whole

    if asked.plot is not None:
        check_plot(asked.plot)
    program, display = api.load(asked.artifact), Display(err)
    with alone_at(asked.target, program, "calibrate", force=asked.replace):
        with display.doing("calibrate"):
            if asked.against is not None:
                program.captured(display, program.load_original(asked.against, display))
            report = program.share_slots(asked.text, progress=display)
        with display.doing("save"):
            program.save(asked.target, force=asked.replace, progress=display)
    if asked.plot is not None:
        write_whole(asked.plot, draw_slots(report.budgets, asked.plot.suffix.lower()[1:]))
    if asked.as_json:
        print_json({"artifact": str(asked.artifact), "output": str(asked.target), **report.to_json()})
    else:
        _tell(report, asked.target)


def _tell(report: BudgetsReport, target: Path) -> None:
    most = max((n for layer in report.budgets for n in layer), default=0)
    out.print("slots of each KV head   (a bar is the share of the largest)")
    for i, layer in enumerate(report.budgets):
        cells = "  ".join(f"{_shade(n, most)} {n:>5}" for n in layer) or "keeps nothing"
        out.print(f"layer {i:>3}  {cells}", highlight=False)
    for each in report.recall:
        share = "full attention gains nothing there" if each.share is None else f"{each.share:.0%}"
        out.print(f"{each.slots:>5} slots   recall {share}   state {size(each.state_bytes)}", highlight=False)
    out.print("recall: the share of full attention's gain on a window that comes again after it was evicted")
    if report.questions == 0:
        out.print("the probes are as they were: the model has no tokenizer, or no room for a text with questions")
    asked = f", {counted(report.questions, 'question')}" if report.questions else ""
    out.print(f"{target}   [dim]{number(report.tokens)} tokens{asked}, {report.seconds:.1f} s[/]")


def _shade(slots: int, most: int) -> str:
    """Four characters, filled as far as `slots` is of `most`; none only for no slots."""
    steps = max(round(4 * 4 * slots / most), 1) if slots else 0
    return "".join(SHADES[min(max(steps - 4 * i, 0), 4)] for i in range(4))
