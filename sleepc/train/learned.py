"""What a training learns: what a teacher says, examples of a task, or texts. Streams of pieces, settings and facts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from typing import Any

from sleepc.backends.table import find_trainer
from sleepc.errors import UsageError
from sleepc.hf.tokenizer import NoTokenizer, Tokenizer
from sleepc.ir.program import ProgramGraphs
from sleepc.tasks.lessons import lessons
from sleepc.tasks.programs import full_attention_for
from sleepc.tasks.puzzle import Puzzle, practice
from sleepc.tasks.puzzles import PUZZLES, make_puzzle, spell_setting
from sleepc.tasks.spelling import choose_spelling
from sleepc.train.program import Trainable
from sleepc.train.reading import Reading, self_reading, task_reading, text_reading
from sleepc.train.run import Run
from sleepc.train.settings import Settings, make_settings
from sleepc.train.study_file import NAME as STUDY
from sleepc.train.study_file import StudyFile
from sleepc.train.texts import Texts
from sleepc.train.tutor import Tutor

TRIED = 64  # examples that are looked at before the first step
SCRATCH = {"train": "all", "start": "new", "optimiser": "muon"}


@dataclass(frozen=True)
class Teacher:
    """Whom a training follows: a program at level CANONICAL. `shared`: how many of the vocabulary's first tokens are
    those of the learner too, None if all are; `digest`: that of its weights, if it is not the original.
    """

    graphs: ProgramGraphs
    name: str
    digest: str = ""
    shared: int | None = None


@dataclass(frozen=True)
class Learned:
    """What is read, the settings it is learned with, what is to be said of it, and what else a resume must find.

    `adapts`: does an adapter say what was learned? `study`: what the teacher asks itself, if it does.
    """

    reading: Reading
    settings: Settings
    facts: dict[str, Any] = field(default_factory=dict)
    unchanged: dict[str, str] = field(default_factory=dict)
    teacher: Teacher | None = None
    adapts: bool = True
    study: StudyFile | None = None

    @property
    def shared(self) -> int | None:
        """How many of the vocabulary's first tokens teacher and learner have in common; None for all."""
        return self.teacher.shared if self.teacher is not None else None


def settings_for(options: dict[str, Any], *, task: bool, scratch: bool) -> Settings:
    """Settings of stage solve for a task, or for texts. `scratch`: what suits a model that knows nothing yet, where
    `options` do not say.

    Raises UsageError for options that are not valid, or have no effect.
    """
    for name in ("stages", "recall", "planted", "studied", "weigh", *(("length", "predict") if task else ())):
        if name in options:
            what = "a task" if task else "a training without a teacher"
            raise UsageError(f"{what} does not take {name}", where=f"--{name}", fix="Leave it out.")
    if scratch:
        rate = options.get("lr", Settings().lr)
        options = {**SCRATCH, "weights_lr": rate, **options}
    return make_settings({**options, "stages": "solve"})


def learn_teacher(program: Trainable, teacher: Teacher, given: Texts | None, settings: Settings, run: Run) -> Learned:
    """What a teacher says to texts, or with none, to what it writes itself."""
    tokenizer, window = program.tokenizer(), program.graphs.window
    load = partial(find_trainer(run.backend).steps, device=run.device or "cpu")
    study = None
    if settings.studied:
        tutor = Tutor(full_attention_for(teacher.graphs, load), tokenizer, teacher.graphs.vocab)
        study = StudyFile(run.folder / STUDY, f"{teacher.name} {teacher.digest or program.identity}", tutor.turns)
    if given is not None:
        reading = text_reading(given.documents, tokenizer, settings, window, study)
    else:
        reading = self_reading(teacher.graphs, tokenizer, settings, window, load, study)
    facts = {"text": given.names if given is not None else "self", "teacher": teacher.name}
    unchanged = {"content": given.content if given is not None else "", "teacher_sha256": teacher.digest}
    return Learned(reading, settings, facts, unchanged, teacher, study=study)


def learn_task(program: Trainable, task: str | Puzzle, chosen: Sequence[str], settings: Settings) -> Learned:
    """A task by name, set as `chosen` says ("width=8"), or a puzzle of one's own, whose example may depend on its
    number: a curriculum. Raises UsageError if there is none, or the program cannot learn it.
    """
    if isinstance(task, str) and task not in PUZZLES:
        raise UsageError(f"unknown task {task!r} to learn", where="--task", fix=f"Tasks: {', '.join(PUZZLES)}.")
    if chosen and not isinstance(task, str):
        raise UsageError("a puzzle of one's own has its settings", where="set", fix="Leave set out.")
    puzzle = make_puzzle(task, chosen) if isinstance(task, str) else task
    tried = [practice(puzzle, index, settings.seed) for index in range(TRIED)]
    spell, as_text = choose_spelling(tokenizer_of(program), puzzle.vocabulary, program.graphs.vocab, tried)
    window, longest = program.graphs.window, max(len(lesson.tokens) for lesson in lessons(spell(tried)))
    if longest <= window:
        raise UsageError(
            f"examples of {longest} tokens never reach beyond the window of {window}: nothing would be learned of the "
            "memories",
            where="--task",
            fix="Choose larger settings (--set), or convert with a smaller --window.",
        )
    facts = {"task": _spelled(task if isinstance(task, str) else type(task).__name__, puzzle), "as_text": as_text}
    settings = settings.model_copy(update={"length": longest})
    return Learned(task_reading(puzzle, spell, settings), settings, facts, adapts=settings.train != "all")


def learn_text(program: Trainable, texts: Texts, settings: Settings) -> Learned:
    """Texts; of each piece the last tokens that `predict` says."""
    reading = text_reading(texts.documents, program.tokenizer(), settings, program.graphs.window)
    facts, unchanged = {"text": texts.names}, {"content": texts.content}
    return Learned(reading, settings, facts, unchanged, adapts=settings.train != "all")


def tokenizer_of(program: Trainable) -> Tokenizer | None:
    """The model's; None if the model has none: tokens are the task's own."""
    try:
        return program.tokenizer()
    except NoTokenizer:
        return None


def _spelled(name: str, puzzle: object) -> str:
    """A task with its settings, as they are given."""
    settings = {f.name: getattr(puzzle, f.name) for f in fields(puzzle)} if is_dataclass(puzzle) else {}
    return " ".join([name, *(f"{key}={spell_setting(value)}" for key, value in settings.items())])
