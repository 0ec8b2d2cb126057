"""`sleepc tune ARTIFACT`: measure how a program runs best on this machine, and keep that for what runs it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleepc.cli.display import Display, counted, err, out, print_json, size, tell
from sleepc.cli.ending import ENDS, Ended, signal_of
from sleepc.cli.option_groups import flag, several, switch, with_options
from sleepc.cli.options import Artifact
from sleepc.cli.schedules import no_schedule_fits, show_schedules, subjects_of
from sleepc.cli.schedules import to_json as schedules_to_json
from sleepc.errors import UsageError
from sleepc.output_place import check_file_place
from sleepc.quantities import bytes_of, number_and_unit

if TYPE_CHECKING:
    from rich.table import Table

    from sleepc.tune.record import Entry, Figures
    from sleepc.tuning import Tuned, Tuning

HERE = ("auto", "cpu")
TIME = "5m"
SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
MEASURED = ("decode_ms", "decode_p99_ms", "read_ms", "pause_ms", "pause_p99_ms")


@dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """What is wanted, and how long it may take."""

    target: str = flag("The device: auto or cpu, which is this machine; h100 and others are predicted.", default="auto")
    budget_memory: str | None = flag("The most memory for weights and the state of one sequence: 2GiB, 500MB.")
    max_pause: str | None = flag("The longest sleep, of 99 in 100: 50ms, 0.2s.")
    quality: list[Path] | None = several(
        "What `sleepc eval --json` printed of the artifact or of a variant, to choose how to sleep by",
        each="<path>",
    )
    variant: list[Path] | None = several("Another conversion of the model, which may be chosen instead", each="<path>")
    min_recall: float | None = flag(
        "The least share of questions that has to be answered, by --quality: 0.8.", min=0.0, max=1.0
    )
    plot: Path | None = flag("Draw what was measured into this file (.svg or .png).")
    time: str | None = flag("Begin no measurement after this time: 90s, 5m.", shown=TIME)
    again: bool = switch("Measure again what the record has.", "--again")
    explain: bool = switch("Say why, and what was left out.", "--explain")
    report: Path | None = flag("Write the candidates as an HTML page with a plot.")
    export_to: Path | None = flag("Write the record to this file, to take it to an equal machine.", "--export")
    import_from: Path | None = flag("Take over a record of an equal machine first.", "--import")
    as_json: bool = switch("Print one JSON object.", "--json")


@with_options
def tune(artifact: Artifact, options: TuneOptions) -> None:
    """Measure how a program runs best on this machine: run, chat, eval and export use what was found."""
    from sleepc.tune.record import Limits

    pause = None if options.max_pause is None else 1e3 * seconds(options.max_pause, "--max-pause")
    memory = None if options.budget_memory is None else bytes_of(options.budget_memory, "--budget-memory")
    limits = Limits(memory=memory, pause_ms=pause)
    deadline = time.monotonic() + seconds(options.time or TIME, "--time")
    if options.target not in HERE:
        from sleepc.cli.elsewhere import tune_elsewhere

        _refuse_what_is_measured(options)
        tune_elsewhere(artifact, options.target, limits, explain=options.explain, as_json=options.as_json)
        return
    for place, name in ((options.report, "--report"), (options.export_to, "--export")):
        if place is not None:
            check_file_place(place, name)  # before any work
    if options.plot is not None:
        from sleepc.tasks.plot import check_plot

        check_plot(options.plot)
    if options.quality is None and (options.min_recall is not None or options.variant):
        from sleepc.tune.quality import RECALL_FIX

        where = "--variant" if options.min_recall is None else "--min-recall"
        raise UsageError(f"no quality of {artifact} is known", where=where, fix=RECALL_FIX)
    tuned = _tuned(artifact, options, limits, deadline)
    _write(tuned, options, f"{artifact.resolve().name} on {tuned.device.name}")
    schedules = tuned.schedules
    if options.as_json:
        print_json(to_json(tuned))
    else:
        _show(tuned, options)
        if schedules is not None:
            show_schedules(schedules, explain=options.explain)
    if schedules is not None and schedules.chosen is None:
        raise no_schedule_fits(schedules)
    own = schedules is None or schedules.chosen is None or schedules.chosen.own
    if tuned.choice.entry is None and own:
        raise _nothing_fits(tuned)


def _write(tuned: Tuned, options: TuneOptions, title: str) -> None:
    """The report and the plot, if they are wanted."""
    from sleepc.whole_file import write_whole

    if options.report is not None:
        from sleepc.tune.report import page

        write_whole(options.report, page(title, tuned.entries, tuned.choice, tuned.schedules).encode())
    if options.plot is not None:
        from sleepc.cli.tune_plot import drawn_choice

        kind = options.plot.suffix.lower()[1:]
        write_whole(options.plot, drawn_choice(title, tuned.entries, tuned.choice, tuned.schedules, kind))


def _refuse_what_is_measured(options: TuneOptions) -> None:
    """Raises UsageError for options that have no meaning for a device that is not here."""
    given: dict[str, object] = {"--quality": options.quality, "--report": options.report, "--time": options.time}
    given |= {"--variant": options.variant, "--min-recall": options.min_recall, "--plot": options.plot}
    given |= {"--export": options.export_to, "--import": options.import_from, "--again": options.again or None}
    for name, value in given.items():
        if value is not None:
            what = f"{name} is of what was measured, and for --target {options.target} everything is predicted"
            raise UsageError(what, where=name, fix="Leave one of them out.")


def _tuned(artifact: Path, options: TuneOptions, limits: Any, deadline: float) -> Tuned:
    """Measure, with records taken over before it and given away after it."""
    from sleepc.cli.opening import open_artifact
    from sleepc.scheduling import schedules
    from sleepc.tune.record import given_away, taken_over
    from sleepc.tune.schedules import Wanted
    from sleepc.tuning import Tuning

    display = Display(err if options.as_json else out)
    program = open_artifact(artifact)
    files, variants = options.quality or [], options.variant or []
    subjects = subjects_of(artifact, program, variants, files, options.min_recall) if files else None
    program.check_bytes()
    tuning = Tuning(program, deadline, display, tell)
    if options.import_from is not None:
        counts = taken_over(options.import_from, tuning.paths, program.identity, tuning.device, tell)
        left = f"{counts[1]} of another machine, program or version, or failed, left out"
        tell(f"{counted(counts[0], 'figure')} taken over, {left}")
    try:
        with display.doing("tune"), tuning:
            tuned = tuning.run(limits, again=options.again)
            if subjects is not None:
                tuned.schedules = schedules(tuning, subjects, Wanted(limits, options.min_recall))
    except ENDS as end:
        raise Ended(signal_of(end), _kept(tuning)) from None
    if options.export_to is not None:
        given_away(options.export_to, tuned.entries, limits)
    return tuned


def _kept(tuning: Tuning) -> str:
    """What is left of a tuning that was ended."""
    done = len(tuning.measured)
    if not done:
        return "nothing was measured yet"
    return f"{counted(done, 'candidate')} measured and kept; the same command goes on"


def _show(tuned: Tuned, options: TuneOptions) -> None:
    out.print(table(tuned))
    if tuned.not_tried:
        passed = f"--time {options.time or TIME} had passed"
        out.print(f"[yellow]{counted(tuned.not_tried, 'candidate')} not measured: {passed}[/]")
    if tuned.choice.entry is not None:
        out.print(f"chosen       {tuned.choice.entry.candidate.words()}{_against_default(tuned)}")
    for words in tuned.choice.costs:
        out.print(f"limit        {words}")
    if options.explain:
        for line in explained(tuned):
            out.print(f"[dim]{line}[/]")
    none = ": it has to have more --time" if tuned.not_tried else ": all that there is was measured before"
    where = f", kept in {tuned.place}" if tuned.measured else none
    out.print(f"measured     {counted(len(tuned.measured), 'candidate')}{where}")


def _against_default(tuned: Tuned) -> str:
    """How fast the choice is, next to the defaults of the default backend."""
    first, chosen = _default(tuned), tuned.choice.entry
    if first is None or first.figures is None or chosen is None or chosen.figures is None or first is chosen:
        return ""
    a, b = chosen.figures, first.figures
    return f": {a.decode_ms / b.decode_ms:.2f} of the time of a token and {a.read_ms / b.read_ms:.2f} of that of reading with the defaults"


def _default(tuned: Tuned) -> Entry | None:
    return next((each for each in tuned.entries if not each.candidate.options and not each.candidate.settings), None)


def explained(tuned: Tuned) -> list[str]:
    """Why the choice is what it is, and why others are not."""
    lines = [
        "a token: read alone; reading: per token of a call of many; ±: how far both may be off; pause: a sleep. Times "
        "are taken in turns with the defaults; those of the best again, beside each other.",
        "chosen: of the candidates that compute the same and are within the limits, the one whose worse ratio (of a "
        "token or of reading) to the best is smallest; of equals the one with the fewest settings.",
    ]
    lines += [f"{each.candidate.words()}: {each.reason}" for each in tuned.entries if each.figures is None]
    return lines + [f"{candidate.words()}: {reason}" for candidate, reason in tuned.left_out]


def table(tuned: Tuned) -> Table:
    """All candidates, the fastest in decoding first; ● is the chosen one, ○ others of the front."""
    from rich.table import Table

    from sleepc.tune.choose import equal

    found = Table(box=None, pad_edge=False)
    for name in ("", "candidate", "token ms", "p99", "reading ms", "±", "pause ms", "p99", "memory", ""):
        found.add_column(name, justify="left" if name in ("", "candidate") else "right")
    for entry in sorted(tuned.entries, key=lambda e: e.figures.decode_ms if e.figures else float("inf")):
        mark = "●" if entry is tuned.choice.entry else "○" if entry in tuned.choice.front else ""
        if entry.figures is None:
            found.add_row(mark, entry.candidate.words(), *[""] * 7, "[red]failed[/]")
        else:
            note = "" if equal(entry) else "rounded weights"
            found.add_row(mark, entry.candidate.words(), *_cells(entry.figures), f"[dim]{note}[/]")
    return found


def _cells(figures: Figures) -> list[str]:
    token, slowest, read, *rest = (f"{getattr(figures, name):.2f}" for name in MEASURED)
    return [token, slowest, read, f"{figures.spread:.0%}", *rest, size(figures.memory)]


def to_json(tuned: Tuned) -> dict[str, Any]:
    """Plain data."""
    choice = tuned.choice
    return {
        "device": tuned.device.model_dump(),
        "chosen": choice.entry.candidate.model_dump() if choice.entry else None,
        "front": [each.candidate.model_dump() for each in choice.front],
        "limits": list(choice.costs),
        "measured": len(tuned.measured),
        "not_tried": tuned.not_tried,
        "place": str(tuned.place) if tuned.place else None,
        "schedules": schedules_to_json(tuned.schedules) if tuned.schedules else None,
        "candidates": [each.model_dump(exclude={"key"}) for each in tuned.entries],
        "left_out": [{"candidate": c.model_dump(), "reason": reason} for c, reason in tuned.left_out],
    }


def _nothing_fits(tuned: Tuned) -> UsageError:
    nearest = tuned.choice.nearest
    if nearest is None or nearest.figures is None:
        fix = "`sleepc tune --explain` says why; give it more --time."
        return UsageError("nothing could be measured", where="tune", fix=fix)
    found = f"{size(nearest.figures.memory)} of memory and sleeps of {nearest.figures.pause_p99_ms:.1f} ms"
    return UsageError(
        f"nothing is within these limits; {nearest.candidate.words()} comes nearest, with {found}",
        where="--budget-memory, --max-pause",
        fix="Give more, or convert with a smaller --window, or export with --precision int8 and tune that.",
    )


def seconds(text: str, where: str) -> float:
    """50ms, 90s, 5m -> seconds. Raises UsageError for anything else."""
    number, unit = number_and_unit(text)
    if unit not in SECONDS or not number:
        raise UsageError(
            f"cannot read {text!r}", where=where, fix=f"Give a number with a unit: 5m ({', '.join(SECONDS)})."
        )
    return number * SECONDS[unit]
