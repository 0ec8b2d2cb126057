"""Answers had again from the words alone, the slow and plain way: none of this looks at how an example was made."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from sleepc.tasks.bigrams import Bigrams
from sleepc.tasks.gsm_symbolic import GsmSymbolic
from sleepc.tasks.gsm_worded import GsmWorded
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


def needle(puzzle: Puzzle, context: Words, question: Question) -> Words:
    _, key = question.asked
    told = [value for word, value in pairwise(context) if word == key]
    assert len(told) == 1
    return (told[0],)


def needles(puzzle: Puzzle, context: Words, question: Question) -> Words:
    """All values of one key, then of the next."""
    return tuple(value for key in question.asked[1:] for word, value in pairwise(context) if word == key)


def tracking(puzzle: Puzzle, context: Words, question: Question) -> Words:
    """By union of the names on both sides of every line, wherever it stands."""
    known = {question.asked[1]}
    lines = [(context[i - 1], context[i + 1]) for i, word in enumerate(context) if word == "="]
    before = 0
    while len(known) > before:
        before = len(known)
        known |= {name for line in lines if known & set(line) for name in line}
    found = tuple(word for word, mark in pairwise(context) if word in known and mark == "=")
    assert len(found) == question.depth + 1
    return (*found, ".")


def depo(puzzle: Puzzle, context: Words, question: Question) -> Words:
    begin, *rest = context
    names: list[Words] = [()]
    for word in rest:
        names[-1] += (word,)
        if word.startswith("z"):
            names.append(())
    assert (begin, names.pop()) == ("begin", ())
    after = dict(zip(names[::2], names[1::2], strict=True))
    hop, *name, _ = question.asked
    assert hop == f"hop{question.depth}"
    at = tuple(name)
    for _ in range(question.depth):
        at = after[at]
    return at


def ngram(puzzle: Puzzle, context: Words, question: Question) -> Words:
    """By searching in text; the key stands before or after the string."""
    parts = "".join((*context, *question.asked)).removeprefix("$").split("|")
    key, string = (parts[0], parts[1]) if parts[-1] == "" else (parts[1], parts[0])
    end = string.index(key) + len(key)
    assert key not in string[end - len(key) + 1 :], "it stands once"
    return tuple(string[end : end + len(question.answer)])


def taken_apart(context: Words, question: Question) -> tuple[Words, list[Words]]:
    """What is asked, from its first word to the question mark, and the sentences, wherever the question stands."""
    every = (*context, *question.asked)
    (start,) = (i for i, word in enumerate(every) if word in ("What", "Which"))
    end = every.index("?")
    assert every[-2:] == ("Answer", ":")
    return every[start:end], sentences((*every[:start], *every[end + 1 : -2]))


def derived(told: list[Words]) -> dict[str, int]:
    """Values of all names that have one: assignments are gone through until nothing new comes of it."""
    values: dict[str, int] = {}
    before = -1
    while len(values) > before:
        before = len(values)
        for _, name, _, first, *change in told:
            if not first.startswith("V"):
                values[name] = int(first)
            elif first in values:
                values[name] = values[first] + int("".join(change) or 0)
    return values


def stop(puzzle: Puzzle) -> Words:
    assert isinstance(puzzle, GsmSymbolic | GsmWorded)
    return (".",) if puzzle.stop else ()


def gsm_symbolic(puzzle: Puzzle, context: Words, question: Question) -> Words:
    asked, told = taken_apart(context, question)
    values = derived(told)
    assert len(values) == question.depth, "the core, and nothing else"
    if asked[0] == "What":
        return (str(values[asked[-1]]), *stop(puzzle))
    return (*(name for name in puzzle.vocabulary if values.get(name) == int(asked[-1])), *stop(puzzle))


def gsm_worded(puzzle: Puzzle, context: Words, question: Question) -> Words:
    asked, told = taken_apart(context, question)
    meaning = {" ".join(sentence[1:6]): " ".join(sentence[7:]) for sentence in told}
    assert len(meaning) == len(told)
    known: dict[str, int] = {}
    operations = 0

    def value(text: str) -> int:
        nonlocal operations
        if text.isdigit():
            return int(text)
        if text.startswith("the total"):
            parts = [name for name in meaning if name.endswith(" " + text.split()[-1])]
            operations += len(parts) - 1
            return sum(value(f"the {name}") for name in parts)
        if text.startswith("the number of"):
            name = text.removeprefix("the ")
            if name not in known:
                known[name] = value(meaning[name])
            return known[name]
        operations += 1
        if " plus " in text:
            number, what = text.split(" plus ")
            return int(number) + value(what)
        if " times " in text:
            number, what = text.split(" times ")
            return int(number) * value(what)
        first, second = text.removeprefix("the sum of ").removeprefix("the difference between ").split(" and ")
        return value(first) + value(second) if "the sum of" in text else value(first) - value(second)

    found = value(" ".join(asked[2:]))
    assert operations == question.depth
    return (str(found), *stop(puzzle))


def associative(puzzle: Puzzle, context: Words, question: Question) -> Words:
    """By the place of the letter in the text."""
    text = "".join((*context, *question.asked))
    string, letter = text.split("??")
    assert string.count(letter) == 1
    assert len(string) == 2 * question.depth
    return (string[string.index(letter) + 1],)


def bigrams(puzzle: Puzzle, context: Words, question: Question) -> Words:
    """What came after the word when it was last followed by one; every span tells one thing of a word."""
    assert isinstance(puzzle, Bigrams)
    part = [word for word in context if word != "."]
    assert len(part) == puzzle.tables * question.depth
    spans, seen = [dict[str, str]() for _ in range(puzzle.tables)], 0
    for run in sentences(context):
        table = spans[seen // question.depth]
        for word, after in pairwise(run):
            assert table.setdefault(word, after) == after
        seen += len(run)
    return (spans[-1][question.asked[0]],)


def babilong(puzzle: Puzzle, context: Words, question: Question) -> Words:
    """Backwards from a sentence: where was the person, who had the thing, where was it before something moved it?"""
    told = sentences(tuple(word for word in context if not word.startswith("n")))

    def person(name: str, upto: int) -> str:
        return next(place for who, how, place in reversed(told[:upto]) if (who, how) == (name, "goes"))

    def thing(name: str, upto: int) -> str:
        last = next(i for i in reversed(range(upto)) if told[i][2] == name)
        who, how, _ = told[last]
        return person(who, upto if how == "takes" else last)

    kind, name, _ = question.asked
    if question.depth == 1:
        return (person(name, len(told)),)
    now = thing(name, len(told))
    if question.depth == 2:
        return (now,)
    assert kind == "before"
    return (next(place for i in reversed(range(len(told))) if (place := thing(name, i)) != now),)


SOLVERS: dict[str, Solver] = {
    "babilong": babilong,
    "associative": associative,
    "bigrams": bigrams,
    "rule110": rule110,
    "khop": khop,
    "needle": needle,
    "multikey": needle,
    "multivalue": needles,
    "multiquery": needles,
    "tracking": tracking,
    "depo": depo,
    "ngram": ngram,
    "gsm-symbolic": gsm_symbolic,
    "gsm-worded": gsm_worded,
}
