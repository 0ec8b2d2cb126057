"""The pieces of every phase: from texts, a task, or what the teacher writes itself. Exactly the same each time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, islice

from sleepc.hf.tokenizer import Tokenizer
from sleepc.ir.program import ProgramGraphs
from sleepc.runtime.steps import Steps
from sleepc.tasks.lessons import lessons
from sleepc.tasks.programs import full_attention
from sleepc.tasks.puzzle import Puzzle, practice
from sleepc.tasks.source import opening_of
from sleepc.tasks.spelling import Spell
from sleepc.train.conversations import Conversations, Study
from sleepc.train.pieces import Piece, pieces, recalling, repeated, shuffled
from sleepc.train.self_text import Writer
from sleepc.train.settings import STAGES, TAUGHT, Phase, Settings
from sleepc.train.texts import Document
from sleepc.train.trainer import Stream

Load = Callable[[ProgramGraphs], Steps]
BUFFER = 1024  # pieces that are shuffled at once
SIDE_BY_SIDE = 8  # texts that a teacher writes at a time
ORDERS = 3  # of pieces of one length: those of align, of distil, and of stages without a teacher


def text_stream(
    documents: Callable[[], Iterable[Document]],
    tokenizer: Tokenizer,
    settings: Settings,
    window: int,
    without: Sequence[Piece] = (),
    study: Study | None = None,
) -> Stream:
    """Pieces of texts, `without` what is in some, epoch after epoch; those that end inside the first window would teach
    a memory nothing.
    """

    def stream(phase: Phase, skip: int) -> Iterator[Piece]:
        def epoch(number: int) -> Iterator[Piece]:
            cut = pieces(documents(), tokenizer, phase.length, window + 2, without)
            return shuffled(cut, _seed(settings, phase), BUFFER, number)

        talks = Conversations(tokenizer, phase.length, len(opening_of(tokenizer)), study, settings.studied)
        every = islice(_asking(repeated(epoch), talks, settings, phase, window), skip, None)
        if phase.stage == "solve" and settings.predict:
            return (piece.at_its_end(settings.predict) for piece in every)
        return every

    return stream


def task_stream(puzzle: Puzzle, spell: Spell, seed: int) -> Stream:
    """Examples of a task in the model's tokens, each a piece with labels; none of them is one that is evaluated on.

    Piece n of a seed is the same in every run.
    """

    def stream(phase: Phase, skip: int) -> Iterator[Piece]:
        for index in count(skip):
            (lesson,) = lessons(spell([practice(puzzle, index, seed)]))
            yield Piece(lesson.tokens, lesson.labels)

    return stream


def self_stream(
    canonical: ProgramGraphs,
    tokenizer: Tokenizer,
    settings: Settings,
    window: int,
    load: Load,
    study: Study | None = None,
) -> Stream:
    """Pieces that the teacher writes; `load` makes its steps."""

    def stream(phase: Phase, skip: int) -> Iterator[Piece]:
        writer = Writer(
            load(full_attention(canonical, phase.length)),
            opening_of(tokenizer),
            phase.length,
            _seed(settings, phase),
            SIDE_BY_SIDE,
            eos_ids=tokenizer.ends(None, canonical.vocab),
            never=tokenizer.holes(canonical.vocab),
            least=window + 2,
        )
        talks = Conversations(tokenizer, phase.length, len(writer.opening), study, settings.studied)
        return _asking(map(Piece, writer.pieces(skip)), talks, settings, phase, window, skip)

    return stream


def _asking(
    every: Iterator[Piece], talks: Conversations, settings: Settings, phase: Phase, window: int, start: int = 0
) -> Iterator[Piece]:
    """With a teacher, some pieces become conversations, and some get stretches to recall; without one they would be
    learned as if people wrote so.
    """
    if phase.stage not in TAUGHT:
        return every
    seed = _seed(settings, phase)
    if settings.planted or settings.studied:
        every = talks.among(every, settings.planted, seed, start)
    return recalling(every, settings.recall, window, talks.opening, seed, start)


def _seed(settings: Settings, phase: Phase) -> int:
    """Another order for every phase."""
    return settings.seed * 1_000_003 + phase.length * ORDERS + min(STAGES.index(phase.stage), ORDERS - 1)
