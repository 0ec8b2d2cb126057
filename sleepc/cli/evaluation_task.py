"""What an evaluation is asked for, and the task that is made of it for a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from sleepc.cli.input_text import read_text
from sleepc.errors import UsageError

if TYPE_CHECKING:
    from sleepc.cli.subjects import EvalSubject
    from sleepc.tasks.puzzle import Puzzle
    from sleepc.tasks.puzzles import Settings
    from sleepc.tasks.source import StreamSource
    from sleepc.tasks.task import Row, Task, TaskName

QUESTIONS = "questions"  # a task of its own kind: see cli/questions.py
ANSWER = 20  # tokens
DISTANCES = "0.5,1,2,4,8"
STREAMS, EXAMPLES = 4, 50  # how many are read if no number is given
ROOM = 64  # random tokens of a stream in addition to those of its distances: more than any planted item has


@dataclass(frozen=True)
class Asked:
    """A task by name: a puzzle, or streams with distances in windows, made of a text."""

    name: str
    samples: int
    seed: int
    windows: list[float]
    text: str | None
    puzzle: Puzzle | None


@dataclass
class Evaluation:
    """A task, and the rows of every model that it was put to."""

    task: Task
    name: str
    window: int
    settings: Settings | None = None
    rows: dict[str, list[Row]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_asked(
    name: str, samples: int | None, seed: int, distances: str | None, text: Path | None, settings: list[str] | None
) -> Asked:
    """What the options say. Raises UsageError for an unknown task, and for options that are not for it."""
    from sleepc.tasks.puzzles import PUZZLES, make_puzzle
    from sleepc.tasks.task import TASKS

    if name not in (*TASKS, *PUZZLES):
        raise UsageError(
            f"unknown task {name!r}", where="--task", fix=f"Tasks: {', '.join((*TASKS, QUESTIONS, *PUZZLES))}."
        )
    if name in PUZZLES:
        for option, value in (("--text", text), ("--distances", distances)):
            if value is not None:
                raise UsageError(f"{name} does not take {option}", where=option, fix=f"Leave {option} out.")
        return Asked(name, samples or EXAMPLES, seed, [], None, make_puzzle(name, settings or ()))
    if settings:
        raise UsageError(f"{name} has no settings", where="--set", fix="Leave --set out.")
    return Asked(name, samples or STREAMS, seed, _windows(distances or DISTANCES), read_text(text), None)


def _windows(text: str) -> list[float]:
    """`0.5,1,2` as numbers, ascending."""
    try:
        found = sorted({float(part) for part in text.split(",")})
    except ValueError:
        found = []
    if not found or not all(0 < n <= 10_000 for n in found):
        raise UsageError(
            f"cannot read distances {text!r}", where="--distances", fix="Give numbers of windows above 0: 0.5,1,2,4."
        )
    return found


def prepare(subject: EvalSubject, asked: Asked) -> Evaluation:
    """The task in the model's tokens. Raises UsageError if they do not hold it."""
    if asked.puzzle is not None:
        return _prepare_puzzle(subject, asked, asked.puzzle)
    from sleepc.tasks.planting import Setup
    from sleepc.tasks.task import make_task

    window = subject.window
    distances = tuple(sorted({max(round(n * window), 1) for n in asked.windows}))
    setup = Setup(distances, asked.samples, subject.sinks, asked.seed)
    source = _source(subject, asked.text, asked.samples * (2 * distances[-1] + setup.sinks + ROOM), asked.seed)
    task = make_task(cast("TaskName", asked.name), source, setup, window)
    found = Evaluation(task, asked.name, window, notes=list(subject.notes))
    if source.tokenizer is None:
        found.notes.append("the model cannot read text: streams are random tokens")
    return found


def _source(subject: EvalSubject, text: str | None, tokens: int, seed: int) -> StreamSource:
    import numpy as np

    from sleepc.tasks.source import make_source

    tokenizer = subject.tokenizer() if text is not None else subject.tokenizer_or_none()
    return make_source(tokenizer, text, subject.vocab, tokens, np.random.default_rng(seed))


def _prepare_puzzle(subject: EvalSubject, asked: Asked, puzzle: Puzzle) -> Evaluation:
    from sleepc.tasks.puzzle import examples
    from sleepc.tasks.puzzles import settings_of
    from sleepc.tasks.solving import Solving
    from sleepc.tasks.spelling import choose_spelling

    made = examples(puzzle, asked.samples, asked.seed)
    spell, as_text = choose_spelling(subject.tokenizer_or_none(), puzzle.vocabulary, subject.vocab, made)
    notes = list(subject.notes)
    if not as_text:
        notes.append(f"the model cannot read text: tokens are the task's own, 0 to {len(puzzle.vocabulary) - 1}")
    task = Solving(puzzle.by, made, spell(made))
    return Evaluation(task, asked.name, subject.window, settings_of(puzzle), notes=notes)
