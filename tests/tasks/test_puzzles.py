"""What the generators make: right answers, promised lengths, nothing given away, the same for the same seed."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sleepc.errors import UsageError
from sleepc.tasks.puzzle import Example, Question, Words, examples
from sleepc.tasks.puzzles import PUZZLES, make_puzzle, settings_of
from sleepc.tasks.rule110 import Rule110, step
from tests.tasks.solvers import SOLVERS, TABLE, sentences

# Settings small enough for few words, so that everything that can coincide does.
SMALL: dict[str, tuple[str, ...]] = {
    "rule110": ("width=5", "states=2", "steps=1,2,7"),
    "khop": ("entities=3", "relations=2", "hops=1,2,5", "questions=3"),
}
CASES = [(name, chosen) for name in PUZZLES for chosen in ((), SMALL[name])]
seeds = st.integers(0, 2**32)


def test_every_puzzle_is_tested() -> None:
    assert set(PUZZLES) == set(SMALL) == set(SOLVERS)


@pytest.mark.parametrize(("name", "chosen"), CASES)
@settings(max_examples=15, deadline=None)
@given(seed=seeds)
def test_answers_are_those_of_a_solver_that_reads_the_words(name: str, chosen: tuple[str, ...], seed: int) -> None:
    puzzle = make_puzzle(name, chosen)
    for example in examples(puzzle, 3, seed):
        assert example.questions
        for question in example.questions:
            assert SOLVERS[name](puzzle, example.context, question) == question.answer


@pytest.mark.parametrize(("name", "chosen"), CASES)
@settings(max_examples=10, deadline=None)
@given(seed=seeds)
def test_words_are_those_of_the_vocabulary_and_no_answer_begins_another(
    name: str, chosen: tuple[str, ...], seed: int
) -> None:
    puzzle = make_puzzle(name, chosen)
    assert len(set(puzzle.vocabulary)) == len(puzzle.vocabulary)
    found = examples(puzzle, 4, seed)
    for example in found:
        for words in (example.context, *(w for q in example.questions for w in (q.asked, q.answer))):
            assert set(words) <= set(puzzle.vocabulary)
            assert words
    ends = [q.answer[-1] for example in found for q in example.questions]
    assert not [(a, b) for a in ends for b in puzzle.vocabulary if a != b and b.startswith(a)]


@pytest.mark.parametrize(("name", "chosen"), CASES)
def test_a_seed_decides_everything(name: str, chosen: tuple[str, ...]) -> None:
    puzzle = make_puzzle(name, chosen)
    assert examples(puzzle, 3, 7) == examples(puzzle, 5, 7)[:3]
    assert examples(puzzle, 3, 7) != examples(puzzle, 3, 8)


@pytest.mark.parametrize("name", PUZZLES)
def test_the_question_alone_does_not_tell_the_answer(name: str) -> None:
    """Who learned for every question its most frequent answer is no better than who always says the same."""
    puzzle = make_puzzle(name, SMALL[name])

    def questions(seed: int) -> list[Question]:
        return [question for example in examples(puzzle, 1500, seed) for question in example.questions]

    asked, depths = defaultdict[Words, Counter[Words]](Counter), defaultdict[int, Counter[Words]](Counter)
    for question in questions(1):
        asked[question.asked][question.answer] += 1
        depths[question.depth][question.answer] += 1
    tested = questions(2)
    learned = np.mean(
        [asked[q.asked].most_common(1) and asked[q.asked].most_common(1)[0][0] == q.answer for q in tested]
    )
    constant = np.mean([depths[q.depth].most_common(1)[0][0] == q.answer for q in tested])
    assert learned < constant + 0.03


def every(name: str, *chosen: str, count: int = 30) -> list[Example]:
    return examples(make_puzzle(name, chosen), count, 3)


def test_rule110_is_its_table_and_turns_with_the_ring() -> None:
    rings = np.random.default_rng(0).integers(0, 2, (50, 9)).astype(bool)
    after = step(rings)
    for ring, found in zip(rings, after, strict=True):
        around = "".join(str(int(bit)) for bit in [ring[-1], *ring, ring[0]])
        assert [TABLE[around[i : i + 3]] for i in range(9)] == [str(int(bit)) for bit in found]
    assert np.array_equal(step(np.roll(rings, 3, -1)), np.roll(after, 3, -1))


def test_rule110_marginals_are_those_of_the_ring() -> None:
    """0.534 and 0.560 after 4 and 32 steps: beyond the ends there are no zeros."""
    for steps, wanted in ((4, 0.534), (32, 0.560)):
        found = [q.answer == ("1",) for e in every("rule110", f"steps={steps}", count=2500) for q in e.questions]
        assert np.mean(found) == pytest.approx(wanted, abs=0.02)


def test_lengths_are_as_promised() -> None:
    for example in every("rule110"):
        assert (len(example.context), len(example.questions)) == (96, 4)
        assert [len(q.asked) for q in example.questions] == [1, 2, 3, 4]
    for example in every("khop", "entities=5", "relations=3"):
        assert len(example.context) == 5 * 3 * 4


def test_depths_take_turns() -> None:
    assert [e.questions[0].depth for e in every("rule110", "steps=1,4,2", count=4)] == [1, 4, 2, 1]
    assert [q.depth for q in every("khop", count=1)[0].questions] == [1, 2, 3, 4]


def test_khop_relations_are_permutations() -> None:
    for example in every("khop"):
        facts = sentences(example.context)
        for relation in ("r1", "r2", "r3"):
            told = [(a, b) for a, r, b in facts if r == relation]
            assert len({a for a, _ in told}) == len({b for _, b in told}) == len(told) == 8


@pytest.mark.parametrize(
    ("name", "chosen", "said"),
    [
        ("rule110", "width=0", "width has to be 1 to 100000, and is 0"),
        ("rule110", "steps=", "cannot be set 'steps='"),
        ("rule110", "width=1,2", "cannot be set"),
        ("rule110", "widht=8", "cannot be set 'widht=8'"),
        ("khop", "hops=1,-2", "cannot be set"),
        ("khop", "relations=1", "with one relation there is one hop"),
    ],
)
def test_settings_that_cannot_be_are_refused(name: str, chosen: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make_puzzle(name, [chosen])


def test_settings_are_those_that_were_given() -> None:
    assert settings_of(make_puzzle("rule110", ["width=8", "steps=1,2"])) == {"width": 8, "states": 4, "steps": (1, 2)}
    with pytest.raises(UsageError, match="steps has to be"):
        Rule110(steps=())
