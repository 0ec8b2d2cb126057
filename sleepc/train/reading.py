"""What a training reads: pieces to learn from, and others, which it never learns from, to judge it by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice

from sleepc.hf.tokenizer import Tokenizer
from sleepc.ir.program import ProgramGraphs
from sleepc.tasks.lessons import lessons
from sleepc.tasks.puzzle import Puzzle, practice
from sleepc.tasks.spelling import Spell
from sleepc.train.conversations import Study
from sleepc.train.pieces import Piece, pieces
from sleepc.train.settings import Settings, parse_stages, phases
from sleepc.train.streams import Load, self_stream, task_stream, text_stream
from sleepc.train.texts import Document
from sleepc.train.trainer import Stream

TOKENS, MOST = 4096, 64  # held out: tokens, about, and pieces at most
EVERY, SPREAD = 8, 1024  # of so many pieces one is held out, or of more: they come from so many first ones
OTHER = 1 << 31  # added to a seed: no seed of a training is that large


def nothing() -> Sequence[Piece]:
    """No pieces."""
    return ()


@dataclass(frozen=True)
class Reading:
    """`stream` is learned from, `held_out` gives the pieces to judge by; `apart`: none of them is learned from."""

    stream: Stream
    held_out: Callable[[], Sequence[Piece]] = nothing
    apart: bool = True


def text_reading(
    documents: Callable[[], Iterable[Document]],
    tokenizer: Tokenizer,
    settings: Settings,
    window: int,
    study: Study | None = None,
) -> Reading:
    """Texts: of the pieces that are learned from some are held out, at even distances, every eighth at most, the last
    one of a few. Of one piece nothing can be.
    """
    count, whole = _count(settings), sum(phase.steps * phase.length for phase in phases(settings)) * settings.batch
    most = max(EVERY * count, min(whole // settings.length, SPREAD))
    first = list(islice(pieces(documents(), tokenizer, settings.length, window + 2), most))
    every = max(EVERY, len(first) // count)
    held = first[every - 1 :: every][:count] or first[-1:]
    apart = len(first) > 1
    stream = text_stream(documents, tokenizer, settings, window, held if apart else (), study)
    if _last(settings) == "solve" and settings.predict:
        held = [piece.at_its_end(settings.predict) for piece in held]
    return Reading(stream, lambda: held, apart)


def task_reading(puzzle: Puzzle, spell: Spell, settings: Settings) -> Reading:
    """Examples of a task. Those held out are of other random numbers, from the whole of the training's length."""
    count, whole = _count(settings), settings.batch * sum(phase.steps for phase in phases(settings))
    numbers = [whole * (2 * n + 1) // (2 * count) for n in range(count)]

    def held_out() -> list[Piece]:
        made = [practice(puzzle, number, settings.seed + OTHER) for number in numbers]
        return [Piece(lesson.tokens, lesson.labels) for lesson in lessons(spell(made))]

    return Reading(task_stream(puzzle, spell, settings.seed), held_out)


def self_reading(
    canonical: ProgramGraphs,
    tokenizer: Tokenizer,
    settings: Settings,
    window: int,
    load: Load,
    study: Study | None = None,
) -> Reading:
    """What the teacher writes; `load` makes its steps. Those held out are of other random numbers."""
    other = settings.model_copy(update={"seed": settings.seed + OTHER, "recall": 0.0, "planted": 0.0, "studied": 0.0})

    @cache
    def held_out() -> list[Piece]:
        first = phases(settings)[0]
        return list(islice(self_stream(canonical, tokenizer, other, window, load)(first, 0), _count(settings)))

    return Reading(self_stream(canonical, tokenizer, settings, window, load, study), held_out)


def _count(settings: Settings) -> int:
    """Pieces that are held out."""
    return min(max(TOKENS // settings.length, 1), MOST)


def _last(settings: Settings) -> str:
    return parse_stages(settings.stages)[-1][0]
