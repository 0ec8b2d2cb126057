"""What a converted model recalls beyond its window: questions on texts, codes, RULER; untrained, and with an adapter.

For every budget of kept pairs (`--keep 128,256`; 0 keeps none) the model is converted and asked; so are full attention
and a sliding window of as many bytes of state. `--calibrate` measures budgets and probes as `sleepc calibrate --only
budgets` does, for each budget. `--questions FILE` takes texts of your own (docs/tasks.md); else the
project's are read. `--only` does a part: questions, retrieval, ruler-single, ruler-multikey, ruler-tracking.
`--model trained` is a tiny Qwen3 that learns here to say again what it has read; it only has codes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
from common import Row, add_letters, arguments, checkpoint_of, console, machine, numbers, report, some_of
from copying_model import copying_source, make_copying

import sleepc
from sleepc.backends.table import find_backend
from sleepc.hf.resolve import Checkpoint, resolve
from sleepc.progress import silent
from sleepc.tasks.planting import Setup
from sleepc.tasks.plot import Plot, check_plot, draw_plot
from sleepc.tasks.question_file import Document, own_questions, parse_questions
from sleepc.tasks.readers import FULL, SLIDING, Reader, compared
from sleepc.tasks.recalling import Recalling, make_recalling
from sleepc.tasks.ruler import RULER, ruler_documents
from sleepc.tasks.source import make_source
from sleepc.tasks.task import make_task

COLUMNS = ("task", "model", "MB", "answered", "counted", "share", "beyond", "within", "nll", "gap", "score")
TRAINED = "trained"
PARTS = ("questions", "retrieval", *RULER)
ANSWER = {"ruler-single": 30, "ruler-multikey": 30, "ruler-tracking": 60}
Programs = dict[str, sleepc.Program]


def main() -> None:
    """Run the benchmark."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--window", type=int, default=128, help="tokens of the window")
    parser.add_argument("--keep", type=numbers, default="128,256", help="budgets: pairs for every KV head, on average")
    parser.add_argument("--score", default="probe", help="what makes a pair worth keeping (docs/keep.md)")
    parser.add_argument("--calibrate", action="store_true", help="measure budgets and probes first (minutes)")
    parser.add_argument("--adapter", type=Path, help="what a training has learned, for every budget")
    parser.add_argument("--questions", type=Path, help="texts with questions, as JSON lines")
    parser.add_argument("--only", type=some_of(PARTS), default=",".join(PARTS), help="parts to do")
    parser.add_argument("--samples", type=int, default=2, help="RULER's texts of every length")
    parser.add_argument("--lengths", type=numbers, default="1000,2000,4000,7500", help="tokens of RULER's texts")
    parser.add_argument("--streams", type=int, default=4, help="streams with codes")
    parser.add_argument("--plot", type=Path, help="draw the questions answered by distance into this file")
    options = parser.parse_args()
    if options.tiny:
        options.window, options.keep, options.lengths, options.samples, options.streams = 64, [8], [400], 1, 1
    if options.plot is not None:
        check_plot(options.plot)
    title = f"recall, window {options.window}"
    report(rows(options), as_json=options.json, title=title, columns=COLUMNS)


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """The machine, and a row for every task, model and distance."""
    yield machine()
    parts = options.only if options.model != TRAINED else ["retrieval"]
    with the_checkpoint(options) as checkpoint:
        if options.tiny:
            add_letters(checkpoint.folder)
        programs = {budget: converted(checkpoint.folder, budget, options) for budget in options.keep}
        for part in (part for part in PARTS if part in parts):
            console.log(part)
            if part == "retrieval":
                yield from codes(programs, options)
            else:
                yield from questions(part, programs, options)


@contextmanager
def the_checkpoint(options: argparse.Namespace) -> Iterator[Checkpoint]:
    """The model to measure."""
    if options.model != TRAINED:
        with checkpoint_of(options) as found:
            yield found
        return
    with TemporaryDirectory(prefix="sleepc-recall-") as scratch, console.status("training") as shown:
        folder = make_copying(Path(scratch), lambda what, share: shown.update(f"{what}, {share or 0:.0%}"))
        shown.stop()
        yield resolve(folder, silent)


def converted(folder: Path, budget: int, options: argparse.Namespace) -> Programs:
    """Programs with so many kept pairs: untrained, and with the adapter if there is one."""
    recipe: dict[str, Any] = {"window": options.window}
    if budget:
        recipe["keep"] = {"slots": budget, "score": options.score}
    name = f"keep {budget}" if budget else "memory alone"
    console.log(f"converting: {name}")
    program = sleepc.convert(folder, recipe)
    if budget and options.calibrate:
        console.log("calibrating")
        program.share_slots()
    found = {name: program}
    if options.adapter is not None:
        trained = found[f"{name}, trained"] = replace(program, graphs=program.graphs.clone(), report={})
        trained.adapt(options.adapter)
    return found


def questions(part: str, programs: dict[int, Programs], options: argparse.Namespace) -> Iterator[Row]:
    """Full attention, and for every budget the sliding window of as many bytes and what was converted."""
    first = next(iter(next(iter(programs.values())).values()))
    tokenizer, canonical = first.tokenizer(), first.captured(silent)
    documents = texts(part, first, options)
    answer = ANSWER.get(part, 20)
    asked, notes = make_recalling(
        tokenizer, documents, first.graphs.vocab, options.window, answer, canonical.max_positions
    )
    for note in notes:
        console.log(note)
    longest, make = max(map(asked.tokens, asked.prompts)), find_backend().steps
    drawn: dict[str, list[Row]] = {}
    for budget, models in programs.items():
        recipe = next(iter(models.values())).recipe
        readers = compared(canonical, recipe, {name: each.graphs for name, each in models.items()}, longest, make)
        found = replace(asked, said={name: said for name, said in asked.said.items() if name == FULL})
        for name, each in readers.items():
            if name not in found.said:  # full attention is the same for every budget
                console.log(f"{part}: {name}, budget {budget}")
                found.ask(name, each, tokenizer, silent_share)
        asked = found
        yield from of_budget(part, budget, found, readers)
        drawn |= by_distance(found, budget)
    if part == "questions" and options.plot is not None and drawn:
        plot = Plot("questions that full attention answers", drawn, "answered", "distance", options.window)
        options.plot.write_bytes(draw_plot(plot, options.plot.suffix.lower()[1:]))


def texts(part: str, program: sleepc.Program, options: argparse.Namespace) -> Sequence[Document]:
    """The texts of a part."""
    if part in RULER:
        lengths = tuple(options.lengths)
        encode = program.tokenizer().encode_part
        kind = cast("Any", RULER[part])(length=lengths)
        return ruler_documents(kind, options.samples, 0, lambda text: len(encode(text)))
    if options.questions is not None:
        documents, notes = parse_questions(options.questions.read_text(encoding="utf-8"), str(options.questions))
        for note in notes:
            console.log(note)
        return documents
    own = own_questions()
    return [replace(own[0], text=own[0].text[-900:], questions=own[0].questions[-3:])] if options.tiny else own


def of_budget(part: str, budget: int, found: Recalling, readers: dict[str, Reader]) -> Iterator[Row]:
    """A row for each model over all texts, and those by distance or length."""
    for name, figures in found.totals().items():
        size = {"MB": readers[name].state_bytes / 1e6, "window": readers[name].window}
        yield {"kind": part, "task": part, "budget": budget, "model": name, **size, **flat(figures)}
    for row in found.rows():
        yield {"kind": f"{part} by place", "budget": budget, **flat(row)}


def flat(figures: Row) -> Row:
    """Shares of what the sliding window answers and does not answer, without what is inside them."""
    parts = {f"{key}_{name}": figures[key][name] for key in ("beyond", "within") for name in ("answered", "counted")}
    shares = {key: figures[key]["share"] for key in ("beyond", "within")}
    return {**figures, **parts, **shares}


def by_distance(found: Recalling, budget: int) -> dict[str, list[Row]]:
    """What the plot shows of a budget."""
    drawn: dict[str, list[Row]] = {}
    for row in found.rows():
        if row["counted"] and row.get("to") is not None:
            name = f"{row['model']} (as keep {budget})" if row["model"] == SLIDING else row["model"]
            drawn.setdefault(name, []).append({"distance": row["to"], "answered": row["share"]})
    return drawn


def codes(programs: dict[int, Programs], options: argparse.Namespace) -> Iterator[Row]:
    """How often the code of a name is found among eight, told 1 to 8 windows ago."""
    for models in programs.values():
        for name, program in models.items():
            window = program.recipe.window
            distances = tuple(n * window for n in ((1, 2) if options.tiny else (1, 2, 4, 8)))
            rng, sinks = np.random.default_rng(0), program.recipe.sinks
            tokens = options.streams * (2 * distances[-1] + sinks + 64)
            source = (
                copying_source(tokens, rng)
                if options.model == TRAINED
                else make_source(program.tokenizer(), None, program.graphs.vocab, tokens, rng)
            )
            task = make_task("retrieval", source, Setup(distances, options.streams, sinks), window)
            found = task.rows(find_backend().steps(program.graphs), task.length, silent_share)
            accuracy = sum(row["accuracy"] for row in found) / len(found)
            mean = {"kind": "retrieval", "task": "retrieval", "model": name, "share": accuracy}
            yield {**mean, "by_distance": {str(row["distance"]): row["accuracy"] for row in found}}


def silent_share(share: float) -> None:
    """Nobody listens."""


if __name__ == "__main__":
    main()
