"""`sleepc eval --task questions`, and RULER's: what a model answers about texts that it has read."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleepc.backends.contract import Backend, Target
from sleepc.backends.table import DEFAULT
from sleepc.cli.display import Display, err, number, out, print_json
from sleepc.cli.evaluation_task import ANSWER, QUESTIONS
from sleepc.cli.input_text import read_text
from sleepc.cli.opening import checked_runner, open_artifact, steps_by
from sleepc.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from sleepc.api import Program
    from sleepc.cli.eval_options import EvalOptions
    from sleepc.hf.tokenizer import Tokenizer
    from sleepc.tasks.question_file import Document
    from sleepc.tasks.readers import Reader
    from sleepc.tasks.recalling import Recalling

    Make = Callable[[Tokenizer], list[Document]]

NOT_OURS = ("sweep", "text", "distances")
OF_TEXTS, OF_RULER = ("samples", "settings"), ("questions",)
SAMPLES = 4  # texts of a length


def evaluate_questions(artifact: Path, options: EvalOptions, started: float) -> None:
    """Ask full attention, a sliding window of as many bytes and the converted model; print figures or JSON."""
    from sleepc.tasks.plot import check_plot

    _check(options)
    make, notes = _documents(options)
    if options.plot is not None:
        check_plot(options.plot)
    display = Display(err)
    with display.doing("eval"):
        program = open_artifact(artifact)
        found, readers, left_out = _ask(program, make, options, display)
    if options.plot is not None and not found.counts.any():
        notes.append("full attention answers none of the questions: no plot is drawn")
    elif options.plot is not None:
        _draw(options.plot, found, artifact.resolve().name)
    facts: dict[str, Any] = {
        "artifact": str(artifact),
        "identity": program.identity,
        "task": options.task,
        "questions": str(options.questions) if options.questions else None,
        "window": found.window,
        "answer": found.answering.most,
        "texts": [{"name": p.document.name, "tokens": len(p.read)} for p in found.prompts],
        "models": [
            {"model": name, "window": readers[name].window, "state_bytes": readers[name].state_bytes, **figures}
            for name, figures in found.totals().items()
        ],
        "rows": found.rows(),
        "answers": found.answers(),
        "notes": [*notes, *left_out],
        "seconds": time.perf_counter() - started,
    }
    if options.as_json:
        print_json(facts)
    else:
        _print(facts)


def _check(options: EvalOptions) -> None:
    for name in (*NOT_OURS, *(OF_TEXTS if options.task == QUESTIONS else OF_RULER)):
        if getattr(options, name) is not None:
            option = "--set" if name == "settings" else f"--{name}"
            raise UsageError(f"{options.task} does not take {option}", where=option, fix=f"Leave {option} out.")
    if isinstance(checked_runner(options.backend), Target):
        fix = f"Leave it out: {DEFAULT} runs the artifact."
        raise UsageError("full attention is measured by PyTorch", where=f"--backend {options.backend}", fix=fix)


def _documents(options: EvalOptions) -> tuple[Make, list[str]]:
    """What makes the texts for a tokenizer, and notes about them."""
    from sleepc.tasks.puzzles import with_settings
    from sleepc.tasks.question_file import own_questions, parse_questions
    from sleepc.tasks.ruler import RULER, ruler_documents

    if options.task != QUESTIONS:
        kind = with_settings(RULER[options.task], options.task, options.settings or ())
        count, seed = options.samples or SAMPLES, options.seed
        return lambda tokenizer: ruler_documents(kind, count, seed, lambda text: len(tokenizer.encode_part(text))), []
    content = read_text(options.questions)
    documents, notes = (own_questions(), []) if content is None else parse_questions(content, str(options.questions))
    return lambda tokenizer: documents, notes


def _ask(
    program: Program, documents: Make, options: EvalOptions, display: Display
) -> tuple[Recalling, dict[str, Reader], list[str]]:
    """What each model says, what the models are, and notes about what was left out."""
    from sleepc.tasks.readers import CONVERTED, compared
    from sleepc.tasks.recalling import make_recalling

    runs = checked_runner(options.backend)
    assert isinstance(runs, Backend), "others are refused before"
    runs.check_device(options.device)
    program.steps(backend=runs.name, device=options.device)  # is it there, and are the bytes those of the conversion?
    own = program.path if options.native_code else None
    make = steps_by(runs, options.device, compile=options.compile, own=own)
    tokenizer, graphs, recipe = program.tokenizer(), program.graphs, program.recipe
    original = None if options.against is None else program.load_original(options.against, display)
    canonical = program.captured(display, original)
    answer = options.answer or ANSWER
    positions = canonical.max_positions
    found, notes = make_recalling(tokenizer, documents(tokenizer), graphs.vocab, recipe.window, answer, positions)
    readers = compared(canonical, recipe, {CONVERTED: graphs}, max(map(found.tokens, found.prompts)), make)
    for name, each in readers.items():
        found.ask(name, each, tokenizer, partial(display, name))
    return found, readers, notes


def _draw(file: Path, found: Recalling, title: str) -> None:
    from sleepc.tasks.plot import Plot, draw_plot
    from sleepc.whole_file import write_whole

    rows: dict[str, list[Any]] = {name: [] for name in found.said}
    for row in found.rows():
        place = row.get("to", row.get("tokens"))
        if row["counted"] and place is not None:
            rows[row["model"]].append({"distance": place, "answered": row["share"]})
    plot = Plot(f"questions that full attention answers: {title}", rows, "answered", "distance", found.window)
    write_whole(file, draw_plot(plot, file.suffix.lower()[1:]))


def _print(facts: dict[str, Any]) -> None:
    from rich.table import Table

    models = facts["models"]
    table = Table(box=None, pad_edge=False, title="questions that full attention answers")
    for name in ("", "state", "window", "answered", "beyond sliding", "within sliding", "nll", "gap to full"):
        table.add_column(name, justify="right")
    for model in models:
        hits = (_share(model[key]) if key in model else "" for key in ("beyond", "within"))
        figures = (f"{_figure(model[key])} ± {_figure(model[f'{key}_se'])}" for key in ("nll", "gap"))
        size = f"{model['state_bytes'] / 1e6:.1f} MB"
        table.add_row(model["model"], size, number(model["window"]), _share(model), *hits, *figures)
    out.print(table)
    out.print(_by_distance(facts))
    asked, texts = models[0]["asked"], len(facts["texts"])
    out.print(f"{asked} questions on {texts} texts, {models[0]['counted']} count   {facts['seconds']:.1f} s")
    for note in facts["notes"]:
        out.print(f"[dim]{note}[/]")


def _by_distance(facts: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table(
        box=None,
        pad_edge=False,
        title="by tokens from the answer in the text to the end of the question, or of the text",
    )
    names = [model["model"] for model in facts["models"]]
    for name in ("tokens", *names):
        table.add_column(name, justify="right")
    places: dict[str, list[str]] = {}
    for row in facts["rows"]:
        place = _place(row)
        places.setdefault(place, []).append(_share(row))
    for place, shares in places.items():
        table.add_row(place, *shares)
    return table


def _share(figures: dict[str, Any]) -> str:
    """How many of how many, and the share with its standard error in per cent."""
    share, error = figures["share"], figures["share_se"]
    if share is None:
        return "–"
    return f"{figures['answered']}/{figures['counted']} {share:.0%}" + (
        f" ± {100 * error:.0f}" if error is not None else ""
    )


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _place(row: dict[str, Any]) -> str:
    """The tokens of the texts, or the range of distances."""
    if "tokens" in row:
        return number(row["tokens"])
    return "nowhere" if row["from"] is None else f"{row['from']}–{row['to']}"
