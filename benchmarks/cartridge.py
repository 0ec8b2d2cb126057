"""Questions on a text: after reading it with kept pairs, and with a cartridge of it in as many bytes of state.

The model is converted with `--keep`, and budgets and probes are measured (`--artifact` takes one that is there). Full
attention answers the questions on a text first: those that it answers count. Then the converted model reads the text
and answers; then it has a cartridge in its slots instead, as it began (the pairs that were kept) and as it was trained.
`--slots` also makes smaller ones.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from common import Row, add_letters, arguments, checkpoint_of, console, machine, numbers, report

import sleepc
from sleepc.backends.table import find_backend
from sleepc.progress import Progress
from sleepc.runtime.cartridge import Cartridge
from sleepc.runtime.session import Session
from sleepc.runtime.steps import Steps
from sleepc.tasks.answering import Answering
from sleepc.tasks.asking import PIECE
from sleepc.tasks.planting import Ids
from sleepc.tasks.programs import full_attention
from sleepc.tasks.question_file import Document, own_questions
from sleepc.tasks.question_prompt import SHORTLY, answer_cut
from sleepc.train.cartridge import CartridgeSettings, Making, make_lessons
from sleepc.train.self_study import document_ids, request_ids

COLUMNS = ("text", "model", "tokens", "MB", "pairs", "answered", "counted", "nll", "loss", "seconds")
TEXTS = "guide,code,story"
ANSWER = 20  # tokens


def main() -> None:
    """Run the benchmark."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--artifact", type=Path, help="a converted model with kept pairs; else one is made")
    parser.add_argument("--window", type=int, default=256, help="tokens of the window")
    parser.add_argument("--keep", type=int, default=128, help="pairs for every KV head, on average")
    parser.add_argument("--texts", default=TEXTS, help="which of the project's texts, with commas between them")
    parser.add_argument("--slots", type=numbers, default="0", help="sizes of cartridges; 0: all slots")
    for name in ("lessons", "steps", "batch", "part"):
        parser.add_argument(f"--{name}", type=int, default=CartridgeSettings.model_fields[name].default)
    parser.add_argument("--lr", type=float, default=CartridgeSettings().lr)
    options = parser.parse_args()
    if options.tiny:
        options.window, options.keep, options.lessons, options.steps = 64, 8, 16, 2
    report(rows(options), as_json=options.json, title="cartridges", columns=COLUMNS)


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """The machine, and rows for every text."""
    yield machine()
    with TemporaryDirectory(prefix="sleepc-cartridge-") as scratch, checkpoint_of(options) as checkpoint:
        if options.tiny:
            add_letters(checkpoint.folder)
        program = converted(checkpoint.folder, Path(scratch), options)
        texts = own_questions()
        if options.tiny:
            chosen = [replace(texts[0], text=texts[0].text[-900:], questions=texts[0].questions[-3:])]
        else:
            chosen = [text for text in texts if text.name in options.texts.split(",")]
        for text in chosen:
            yield from of_text(program, text, options)


def converted(folder: Path, scratch: Path, options: argparse.Namespace) -> sleepc.Program:
    """The program that is measured."""
    if options.artifact is not None:
        return sleepc.load(options.artifact)
    console.log("converting")
    program = sleepc.convert(folder, {"window": options.window, "keep": {"slots": options.keep}})
    if not options.tiny:
        console.log("measuring budgets and probes")
        program.share_slots()
    program.save(scratch / "artifact")
    return program


def of_text(program: sleepc.Program, text: Document, options: argparse.Namespace) -> Iterator[Row]:
    """What each model answers."""
    asking = Asking(program, text)
    full = full_attention(program.captured(quiet), len(asking.read) + 256)
    yield asking.answered("full", read_by(find_backend().steps(full), asking.read), full.state_bytes())
    steps = find_backend().steps(program.graphs)
    state = program.graphs.state_bytes()
    yield asking.answered("keep", read_by(steps, asking.read), state)
    lessons = None
    for slots in options.slots:
        names = ("lessons", "steps", "batch", "part", "lr")
        settings = CartridgeSettings(slots=slots or None, **{name: getattr(options, name) for name in names})
        started = time.perf_counter()
        making = Making(program, settings)
        begun = making.filled(asking.read, text.text, quiet)
        name = f"cartridge {slots}" if slots else "cartridge"
        yield asking.answered(f"{name}, as it began", holding(steps, begun, program.identity), state, begun)
        if lessons is None:
            console.log(f"{text.name}: self-study")
            before = time.perf_counter()
            lessons = make_lessons(program, text.text, settings, quiet)
            console.log(f"{len(lessons)} lessons, {time.perf_counter() - before:.0f} s")
        made = making.trained(begun, lessons, shown(text.name))
        seconds = time.perf_counter() - started
        row = asking.answered(name, holding(steps, made.cartridge, program.identity), state, made.cartridge)
        yield {**row, "loss": f"{made.before:.3f} -> {made.after:.3f}", "best": made.best, "seconds": seconds}


class Asking:
    """The questions on one text; those that the first model asked answers are counted."""

    def __init__(self, program: sleepc.Program, text: Document) -> None:
        tokenizer = program.tokenizer()
        shortly = f" {SHORTLY}" if tokenizer.has_template() else ""
        self.tokenizer, self.text, self.read = tokenizer, text, document_ids(tokenizer, text.text)
        self.asked: list[Ids] = [tuple(request_ids(tokenizer, q.question + shortly)) for q in text.questions]
        ends = tokenizer.ends(tokenizer.template(), program.graphs.vocab)
        holes = tuple(tokenizer.holes(program.graphs.vocab))
        self.answering = Answering(ANSWER, tuple(ends), holes, answer_cut(tokenizer))
        self.full: list[Ids] | None = None
        self.counts: np.ndarray | None = None

    def answered(self, name: str, session: Session, state: int, cartridge: Cartridge | None = None) -> Row:
        """What a session that has read the text answers."""
        found = self.answering.answer_in(session, self.asked, self.full)
        said = [self.tokenizer.decode(ids).strip() for ids, _ in found]
        right = np.array([q.score(answer) == 1 for q, answer in zip(self.text.questions, said, strict=True)])
        if self.counts is None:
            self.full, self.counts = [ids for ids, _ in found], right
        nll = np.array([nll for _, nll in found])[self.counts]
        row = {"kind": "cartridge", "text": self.text.name, "model": name, "tokens": len(self.read), "MB": state / 1e6}
        row |= {"answered": int((right & self.counts).sum()), "counted": int(self.counts.sum())}
        row |= {"right": int(right.sum()), "asked": len(right), "nll": float(nll.mean()) if len(nll) else None}
        if cartridge is not None:
            row |= {"pairs": sum(map(sum, cartridge.pairs.values())), "cartridge_MB": cartridge.nbytes / 1e6}
        return row


def read_by(steps: Steps, tokens: Sequence[int]) -> Session:
    """A session that has read the text."""
    session = Session(steps)
    for at in range(0, len(tokens), PIECE):
        session.feed([list(tokens[at : at + PIECE])], logits="none")
    return session


def holding(steps: Steps, cartridge: Cartridge, identity: str) -> Session:
    """A session that has a cartridge instead."""
    session = Session(steps, identity=identity)
    session.load_cartridges([cartridge])
    return session


def shown(name: str) -> Progress:
    """Says how far it is, now and then."""
    said = 0.0

    def progress(what: str, share: float | None) -> None:
        nonlocal said
        if time.monotonic() - said > 60:
            said = time.monotonic()
            console.log(f"{name}: {what} {share or 0:.0%}")

    return progress


def quiet(what: str, share: float | None) -> None:
    """Nobody listens."""


if __name__ == "__main__":
    main()
