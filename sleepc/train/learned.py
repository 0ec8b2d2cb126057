"""What stage solve learns, without a teacher: examples of a task, or texts. Streams of pieces, settings and facts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from itertools import islice
from typing import Any

from sleepc.errors import UsageError
from sleepc.hf.tokenizer import NoTokenizer, Tokenizer
from sleepc.tasks.puzzle import Puzzle, practice
from sleepc.tasks.puzzles import PUZZLES, make_puzzle, spell_setting
from sleepc.tasks.spelling import choose_spelling
from sleepc.train.program import Program
from sleepc.train.settings import Phase, Settings, make_settings
from sleepc.train.streams import task_stream, text_stream
from sleepc.train.texts import Document
from sleepc.train.trainer import Stream

TRIED = 64  # examples that are looked at before the first step
SCRATCH = {"train": "all", "start": "new", "optimiser": "muon"}


@dataclass(frozen=True)
class Learned:
    """A stream, the settings it is learned with, and what is to be said of it."""

    stream: Stream
    settings: Settings
    facts: dict[str, Any]


def settings_for(options: dict[str, Any], *, task: bool, scratch: bool) -> Settings:
    """Settings of stage solve for a task, or for texts. `scratch`: what suits a model that knows nothing yet, where
    `options` do not say.

    Raises UsageError for options that are not valid, or have no effect.
    """
    for name in ("stages", "recall", *(("length", "predict") if task else ())):
        if name in options:
            what = "a task" if task else "a training without a teacher"
            raise UsageError(f"{what} has no use for {name}", where=f"--{name}", fix="Leave it out.")
    if scratch:
        rate = options.get("lr", Settings().lr)
        options = {**SCRATCH, "weights_lr": rate, **options}
    return make_settings({**options, "stages": "solve"})


def learn_task(program: Program, task: str | Puzzle, chosen: Sequence[str], settings: Settings) -> Learned:
    """A task by name, set as `chosen` says ("width=8"), or a puzzle of one's own, whose example may depend on its
    number: a curriculum. Raises UsageError where there is none, or the program cannot learn it.
    """
    if isinstance(task, str) and task not in PUZZLES:
        raise UsageError(f"there is no task {task!r} to learn", where="--task", fix=f"Tasks: {', '.join(PUZZLES)}.")
    if chosen and not isinstance(task, str):
        raise UsageError("a puzzle of one's own has its settings", where="set", fix="Leave set out.")
    puzzle = make_puzzle(task, chosen) if isinstance(task, str) else task
    tried = [practice(puzzle, index, settings.seed) for index in range(TRIED)]
    spell, as_text = choose_spelling(tokenizer_of(program), puzzle.vocabulary, program.graphs.vocab, tried)
    stream, window = task_stream(puzzle, spell, settings.seed), program.graphs.window
    longest = max(map(len, islice(stream(Phase("solve", 0, 1, 0, 1), 0), TRIED)))
    if longest <= window:
        raise UsageError(
            f"examples of {longest} tokens never reach beyond the window of {window}: nothing would be learned of the "
            "memories",
            where="--task",
            fix="Choose larger settings (--set), or convert with a smaller --window.",
        )
    facts = {"task": _spelled(task if isinstance(task, str) else type(task).__name__, puzzle), "as_text": as_text}
    return Learned(stream, settings.model_copy(update={"length": longest}), facts)


def learn_text(
    program: Program, documents: Callable[[], Iterable[Document]], names: list[str] | str, settings: Settings
) -> Learned:
    """Texts, called `names`; of each piece the last tokens that `predict` says."""
    stream = text_stream(documents, program.tokenizer(), settings, program.graphs.window)
    return Learned(stream, settings, {"text": names})


def tokenizer_of(program: Program) -> Tokenizer | None:
    """The model's; None where the model has none: tokens are the task's own."""
    try:
        return program.tokenizer()
    except NoTokenizer:
        return None


def _spelled(name: str, puzzle: object) -> str:
    """A task with its settings, as they are given."""
    settings = {f.name: getattr(puzzle, f.name) for f in fields(puzzle)} if is_dataclass(puzzle) else {}
    return " ".join([name, *(f"{key}={spell_setting(value)}" for key, value in settings.items())])
