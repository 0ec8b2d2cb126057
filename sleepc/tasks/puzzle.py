"""Puzzles: a context in words, and questions about it that have one right answer each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from itertools import pairwise
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np

from sleepc.errors import UsageError

Words = tuple[str, ...]
MOST = 100_000  # of any setting
PRACTICE = 1  # the spawn key of what is trained on
NO_SPACE_BEFORE = {".", ",", "?", ":"}


@dataclass(frozen=True)
class Question:
    """`asked` is read after the context, then `answer` is to follow. `depth` is what rows of figures are told apart
    by.
    """

    asked: Words
    answer: Words
    depth: int


@dataclass(frozen=True)
class Example:
    """A context, and questions that are each asked right after it."""

    context: Words
    questions: tuple[Question, ...]


@runtime_checkable
class Puzzle(Protocol):
    """A generator: a frozen dataclass, whose fields are settings (numbers, or tuples of depths to go through)."""

    by: ClassVar[str]
    """What depth counts: "steps", "hops", "pairs" ..."""

    @property
    def vocabulary(self) -> Words:
        """All words, in the order of their ids for a model that knows no others."""

    def example(self, index: int, rng: np.random.Generator) -> Example:
        """Example number `index`: several depths take turns by it."""


def examples(puzzle: Puzzle, count: int, seed: int) -> list[Example]:
    """The first `count` examples of a seed. Each has random numbers of its own, so more of them begin with the same."""
    return [puzzle.example(index, np.random.default_rng([seed, index])) for index in range(count)]


def practice(puzzle: Puzzle, index: int, seed: int) -> Example:
    """Example number `index` of an endless row to train on, of random numbers that no example of `examples` has.

    A spawn key is mixed in behind four 32-bit words, which `examples` fills only with seeds of 2**96 and more.
    Questions are in random order, unless each continues the one before: if depths took turns, the place of a question
    would tell its depth, and a model that learns that fails when it is asked one question alone.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, index], spawn_key=[PRACTICE]))
    example = puzzle.example(index, rng)
    if go_on([question.asked for question in example.questions]):
        return example
    return replace(example, questions=tuple(example.questions[i] for i in rng.permutation(len(example.questions))))


def go_on(asked: Sequence[tuple[object, ...]]) -> bool:
    """Is each the beginning of the next?

    >>> go_on([("?",), ("?", "?")]), go_on([("k", "a"), ("k", "b")])
    (True, False)
    """
    return all(len(after) > len(before) and after[: len(before)] == before for before, after in pairwise(asked))


@cache
def named(letter: str, count: int) -> Words:
    """Words of equal length, so that none is the beginning of another.

    >>> named("k", 10)[:2], named("k", 10)[-1]
    (('k01', 'k02'), 'k10')
    """
    return tuple(f"{letter}{i:0{len(str(count))}}" for i in range(1, count + 1))


def in_turn(depths: Sequence[int], index: int) -> int:
    """Depth number `index`, from the beginning again after the last."""
    return depths[index % len(depths)]


def text_of(words: Words) -> str:
    """Words as they follow other words: a space before each but marks.

    >>> text_of(("What", "is", "a", "?"))
    ' What is a?'
    """
    return "".join(word if word in NO_SPACE_BEFORE else f" {word}" for word in words)


def check(puzzle: object, zeros: Sequence[str] = (), flags: Sequence[str] = ()) -> None:
    """Raises UsageError for a setting below 1 (0 for `zeros`) or too large, a flag not 0 or 1, and for no depths."""
    for field in fields(puzzle):  # type: ignore[arg-type]
        value = getattr(puzzle, field.name)
        numbers = value if isinstance(value, tuple) else (value,)
        least, most = int(field.name not in (*zeros, *flags)), 1 if field.name in flags else MOST
        if not numbers or not all(least <= n <= most for n in numbers):
            raise refusal(f"{field.name} has to be {least} to {most}, and is {value}")


def refusal(what: str) -> UsageError:
    """The error, to be raised, for settings that do not go together."""
    return UsageError(what, where="--set", fix="Give other settings, as --set name=4 or --set name=1,2,4.")
