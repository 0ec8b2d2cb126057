"""Answers had again from the words alone, the slow and plain way: none of this looks at how an example was made."""

from __future__ import annotations

from collections.abc import Callable

from sleepc.tasks.puzzle import Puzzle, Question, Words
from sleepc.tasks.rule110 import Rule110

TABLE = {"111": "0", "110": "1", "101": "1", "100": "0", "011": "1", "010": "1", "001": "1", "000": "0"}
Solver = Callable[[Puzzle, Words, Question], Words]


def rule110(puzzle: Puzzle, context: Words, question: Question) -> Words:
    assert isinstance(puzzle, Rule110)
    number = len(question.asked) - 1
    cells = list(context[number * puzzle.width : (number + 1) * puzzle.width])
    for _ in range(question.depth):
        cells = [TABLE[cells[i - 1] + cells[i] + cells[(i + 1) % len(cells)]] for i in range(len(cells))]
    return (cells[0],)


def sentences(words: Words) -> list[Words]:
    """Words between points."""
    found: list[list[str]] = [[]]
    for word in words:
        if word == ".":
            found.append([])
        else:
            found[-1].append(word)
    return [tuple(sentence) for sentence in found if sentence]


def khop(puzzle: Puzzle, context: Words, question: Question) -> Words:
    facts = {(who, how): whom for who, how, whom in sentences(context)}
    at, *path = question.asked
    assert len(path) == question.depth
    for relation in path:
        at = facts[at, relation]
    return (at,)


SOLVERS: dict[str, Solver] = {"rule110": rule110, "khop": khop}
