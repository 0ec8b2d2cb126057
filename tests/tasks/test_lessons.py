"""Rows to train on: what they ask is what the words say, read by a parser of its own; none of them is evaluated on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from sleepc.tasks.lessons import NOTHING, Lesson, lessons
from sleepc.tasks.planting import Item, Sample
from sleepc.tasks.puzzle import Example, Question, Words, examples, practice
from sleepc.tasks.puzzles import PUZZLES, make_puzzle
from sleepc.tasks.spelling import spell_as_ids, spell_as_text
from tests.tasks.solvers import SOLVERS
from tests.tasks.test_puzzles import CASES, SMALL
from tests.tasks.test_solving import byte_level

Turn = tuple[int, Words, Words]
"""Where a question ends in a row, its words, and the words that are asked for from there on."""


def turns(name: str, lesson: Lesson, words: Words) -> tuple[Words, list[Turn]]:
    """The context of a row and its turns, found from its labels: what follows an answer is the next question."""
    said = [words[i] for i in lesson.tokens]
    asked = np.flatnonzero(lesson.labels != NOTHING)
    starts = [int(i) for n, i in enumerate(asked) if n == 0 or i > asked[n - 1] + 1 or name == "rule110"]
    found = []
    for start, end in zip(starts, [*starts[1:], len(said)], strict=True):
        found.append((start, tuple(words[i] for i in lesson.labels[start:end] if i != NOTHING)))
    first = FIRST[name](said)
    ends = [first - 1, *(start + len(answer) for start, answer in found)]
    every = [
        (start, tuple(said[first if name == "rule110" else end + 1 : start + 1]), answer)
        for end, (start, answer) in zip(ends, found, strict=False)
    ]
    return tuple(said[:first]), every


# Where the first question begins, by what only questions have.
FIRST: dict[str, Callable[[Sequence[str]], int]] = {
    "rule110": lambda said: said.index("?"),
    "khop": lambda said: len(said) - said[::-1].index("."),
    "depo": lambda said: next(i for i, word in enumerate(said) if word.startswith("hop")),
    "gsm-symbolic": lambda said: next(i for i, word in enumerate(said) if word in ("What", "Which")),
    "gsm-worded": lambda said: said.index("What"),
}


def depth(name: str, asked: Words, example_depth: int) -> int:
    """How deep a question is, by its words where they say so."""
    return {"depo": lambda: int(asked[0][3:]), "khop": lambda: len(asked) - 1}.get(name, lambda: example_depth)()


@pytest.mark.parametrize("name", FIRST)
def test_labels_are_the_answers_that_a_solver_reads_in_the_row(name: str) -> None:
    puzzle = make_puzzle(name, SMALL[name])
    made = [practice(puzzle, index, 5) for index in range(12)]
    rows = lessons(spell_as_ids(puzzle.vocabulary, len(puzzle.vocabulary), made))
    for example, lesson in zip(made, rows, strict=True):
        context, found = turns(name, lesson, puzzle.vocabulary)
        assert len(found) == len(example.questions)
        for _, asked, answer in found:
            question = Question(asked, answer, depth(name, asked, example.questions[0].depth))
            assert SOLVERS[name](puzzle, context, question) == answer


def test_bits_of_rule110_are_asked_for_and_never_read() -> None:
    puzzle = make_puzzle("rule110", ["width=6", "states=3", "steps=2"])
    made = [practice(puzzle, index, 0) for index in range(20)]
    for example, lesson in zip(made, lessons(spell_as_ids(puzzle.vocabulary, 3, made)), strict=True):
        assert lesson.tokens[18:].tolist() == [2, 2, 2]
        assert lesson.labels.tolist() == [NOTHING] * 18 + [int(q.answer[0]) for q in example.questions]


def test_other_rows_say_each_answer_and_ask_for_all_of_it() -> None:
    context = np.array([7, 8])
    items = {0: Item((), (1, 2), ((3, 4),)), 1: Item((), (1, 2, 5), ((6,),))}
    (lesson,) = lessons([Sample(context, items)])
    assert lesson.tokens.tolist() == [7, 8, 1, 2, 3, 4, 1, 2, 5]
    assert lesson.labels.tolist() == [-1, -1, -1, 3, 4, -1, -1, -1, 6]
    (single,) = lessons([Sample(context, {0: Item((), (1, 2), ((3,),))})])
    assert (single.tokens.tolist(), single.labels.tolist()) == ([7, 8, 1, 2], [-1, -1, -1, 3])


@pytest.mark.parametrize(("name", "chosen"), CASES)
def test_what_is_asked_is_all_of_the_answers_in_order(name: str, chosen: tuple[str, ...]) -> None:
    puzzle = make_puzzle(name, chosen)
    made = [practice(puzzle, index, 0) for index in range(3)]
    for samples in (
        spell_as_ids(puzzle.vocabulary, len(puzzle.vocabulary), made),
        spell_as_text(byte_level(), made),
    ):
        for sample, lesson in zip(samples, lessons(samples), strict=True):
            answers = [token for item in sample.items.values() for token in item.candidates[0]]
            assert lesson.labels[lesson.labels != NOTHING].tolist() == answers
            assert lesson.tokens.dtype == lesson.labels.dtype == np.int64
            assert len(lesson.tokens) == len(lesson.labels)
            assert lesson.labels[-1] != NOTHING


class Draws:
    """A puzzle whose examples are the state of the generator that makes them."""

    def example(self, index: int, rng: np.random.Generator) -> Example:
        return Example((str(rng.bit_generator.state),), ())


def states(seeds: list[int]) -> Iterator[str]:
    for seed in seeds:
        yield from map(str, examples(Draws(), 40, seed))  # type: ignore[arg-type]


def test_what_is_trained_on_is_never_what_is_evaluated() -> None:
    """Also where a seed of more than 32 bits would take the place of the number that tells them apart."""
    seeds = [0, 1, 2, 2**32, 2**32 + 1, (1 << 32) * 3 + 2, 2**64 - 1, 2**64, (1 << 64) + 5]
    trained = {seed: [str(practice(Draws(), i, seed)) for i in range(40)] for seed in seeds}  # type: ignore[arg-type]
    evaluated = set(states(seeds))
    assert not [seed for seed, found in trained.items() if evaluated & set(found)]
    assert len({*trained[0], *trained[1], *trained[2]}) == 3 * 40


@pytest.mark.parametrize(("name", "chosen"), [("depo", ("hops=1,2", "questions=4")), ("khop", ("hops=1,2",))])
def test_the_place_of_a_question_does_not_tell_its_depth(name: str, chosen: tuple[str, ...]) -> None:
    puzzle = make_puzzle(name, chosen)
    made = [practice(puzzle, index, 0) for index in range(60)]
    for place in range(len(made[0].questions)):
        assert {example.questions[place].depth for example in made} == {1, 2}
    assert all(abs(sum(q.depth == 1 for q in m.questions) - len(m.questions) / 2) <= 0.5 for m in made), (
        "turns are kept"
    )


@pytest.mark.parametrize("name", PUZZLES)
def test_practice_goes_on_without_an_end_and_is_the_same_again(name: str) -> None:
    puzzle = make_puzzle(name)
    assert practice(puzzle, 10**6, 3) == practice(puzzle, 10**6, 3)
    assert practice(puzzle, 10**6, 3) != practice(puzzle, 10**6 + 1, 3)
    assert not {practice(puzzle, i, 0) for i in range(30)} & set(examples(puzzle, 30, 0))
