"""What the generators make: right answers, promised lengths, nothing given away, the same for the same seed."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sleepc.errors import UsageError
from sleepc.runtime.steps import IntArray
from sleepc.tasks.puzzle import Example, Question, Words, examples
from sleepc.tasks.puzzles import PUZZLES, make_puzzle, settings_of
from sleepc.tasks.rule110 import Rule110, step
from tests.tasks.solvers import SOLVERS, TABLE, sentences

# Settings small enough for few words, so that everything that can coincide does.
SMALL: dict[str, tuple[str, ...]] = {
    "rule110": ("width=5", "states=2", "steps=1,2,7"),
    "khop": ("entities=3", "relations=2", "hops=1,2,5", "questions=3"),
    "needle": ("length=9,20", "keys=2", "values=3", "tail=4"),
    "multikey": ("pairs=3,5", "keys=6", "values=5", "questions=2", "tail=1"),
    "multivalue": ("length=9,20", "keys=2", "values=4", "each=2", "tail=4"),
    "multiquery": ("length=9,20", "keys=3", "values=4", "needles=2", "asked=2", "tail=4"),
    "tracking": ("length=30", "names=7", "values=3", "hops=1,2", "tail=2"),
    "babilong": ("told=9", "length=50", "tail=3", "people=2", "places=3", "things=2"),
    "associative": ("pairs=2,4", "letters=5", "digits=3", "tail=1"),
    "bigrams": ("span=6,9", "words=4", "tables=3"),
    "depo": ("nodes=4", "letters=5", "hops=1,2,3", "questions=3"),
    "ngram": ("length=6,12", "key=2", "answer=1", "letters=6"),
    "gsm-symbolic": ("ops=1,2,5", "noise=3", "names=8"),
    "gsm-worded": ("ops=1,2,5", "noise=2", "most=9"),
}
OTHERS = [
    ("bigrams", ("tables=1", "span=2")),
    ("ngram", ("first=1", "answer=3")),
    ("gsm-symbolic", ("first=1", "noise=0")),
    ("gsm-symbolic", ("chain=0",)),
    ("gsm-symbolic", ("chain=0", "first=1", "noise=1")),
    ("gsm-worded", ("first=1", "noise=0", "totals=0")),
    ("gsm-worded", ("ops=20", "noise=30")),
    ("multiquery", ("needles=3", "each=2", "asked=2", "length=30")),
    ("tracking", ("chains=1", "hops=4")),
    ("tracking", ("chains=5", "hops=3", "length=80")),
    ("babilong", ("told=40", "length=200", "people=1", "places=2", "things=1")),
    ("khop", ("tail=20",)),
    ("depo", ("nodes=7", "questions=3", "tail=4")),
    ("depo", ("nodes=12", "questions=5", "fewer=1")),
    ("gsm-symbolic", ("tail=15",)),
    ("gsm-symbolic", ("chain=0", "first=1", "tail=15")),
    ("gsm-worded", ("tail=8",)),
]
BARE = [("gsm-symbolic", ("stop=0",)), ("gsm-symbolic", ("stop=0", "chain=0")), ("gsm-worded", ("stop=0", "first=1"))]
CASES = [(name, chosen) for name in PUZZLES for chosen in ((), SMALL[name])] + OTHERS
seeds = st.integers(0, 2**32)


def test_every_puzzle_is_tested() -> None:
    assert set(PUZZLES) == set(SMALL) == set(SOLVERS)


@pytest.mark.parametrize(("name", "chosen"), CASES + BARE)
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


@pytest.mark.parametrize("width", [1, 2, 9])
def test_rule110_is_its_table_and_turns_with_the_ring(width: int) -> None:
    """Four rings at once, whose first cells are told first."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        rings = rng.integers(0, 2, (4, width))
        after = stepped(rings)
        for ring, found in zip(rings.tolist(), after.tolist(), strict=True):
            around = "".join(map(str, [ring[-1], *ring, ring[0]]))
            assert [TABLE[around[i : i + 3]] for i in range(width)] == [str(bit) for bit in found]
        assert np.array_equal(stepped(np.roll(rings, 3, -1)), np.roll(after, 3, -1))


def stepped(rings: IntArray) -> IntArray:
    bits = "".join(map(str, rings.T.ravel()))
    after = f"{step(int(bits, 2), len(rings), rings.size):0{rings.size}b}"
    return np.array([[int(bit) for bit in after[i :: len(rings)]] for i in range(len(rings))])


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


@pytest.mark.parametrize("tail", [0, 5])
def test_needles_stand_once_at_any_place_before_the_tail(tail: int) -> None:
    places: Counter[int] = Counter()
    for example in every("needle", "length=20", f"tail={tail}", count=600):
        assert len(example.context) == 20
        at = example.context.index(example.questions[0].asked[1])
        assert [word[0] for word in example.context] == ["n"] * at + ["k", "v"] + ["n"] * (18 - at)
        places[at] += 1
    assert set(places) == set(range(19 - tail)), "all of them"
    assert max(places.values()) < 2.5 * 600 / (19 - tail)


def test_a_needle_does_not_depend_on_the_noise() -> None:
    """Every value is as likely for every key."""
    asked = Counter(
        (e.questions[0].asked[1], *e.questions[0].answer) for e in every("needle", "keys=2", "values=2", count=800)
    )
    assert len(asked) == 4
    assert max(asked.values()) < 260


@settings(max_examples=20, deadline=None)
@given(seed=seeds, pairs=st.integers(3, 9), tail=st.integers(0, 2))
def test_keys_and_values_are_different_and_none_of_the_tail_is_asked(seed: int, pairs: int, tail: int) -> None:
    puzzle = make_puzzle("multikey", [f"pairs={pairs}", f"tail={tail}", "questions=1", "keys=9", "values=9"])
    (example,) = examples(puzzle, 1, seed)
    keys, values = example.context[::3], example.context[1::3]
    assert len(example.context) == 3 * pairs
    assert len(set(keys)) == len(set(values)) == pairs
    assert keys.index(example.questions[0].asked[1]) < pairs - tail


def test_depo_is_one_cycle_of_different_names() -> None:
    """So k hops and n - k hops undo each other, and n hops lead back."""
    puzzle = make_puzzle("depo", ["nodes=7", "letters=3", "questions=7"])
    for example in examples(puzzle, 20, 0):
        starts = {question.asked[1:-1] for question in example.questions}
        for start in starts:
            there = SOLVERS["depo"](puzzle, example.context, Question(("hop3", *start, "is"), (), 3))
            back = SOLVERS["depo"](puzzle, example.context, Question(("hop4", *there, "is"), (), 4))
            assert back == start
            assert there != start
        assert len(starts) == 7
    assert max(len(example.context) for example in every("depo")) <= 301, "75 edges, as the paper has it"


@pytest.mark.parametrize("tail", [0, 7])
def test_keys_stand_anywhere_before_the_tail(tail: int) -> None:
    places = set()
    for example in every("ngram", "length=20", "answer=2", f"tail={tail}", count=400):
        (question,) = example.questions
        places.add("".join(example.context[1:]).index("".join(question.asked[1:])))
    assert places == set(range(20 - 3 - 2 - tail + 1))


@pytest.mark.parametrize("first", [0, 1])
def test_a_key_comes_last_or_first(first: int) -> None:
    for example in every("ngram", "length=30", "answer=4", f"first={first}"):
        (question,) = example.questions
        assert (len(question.asked), len(question.answer)) == (1 if first else 4, 4)
        assert len(example.context) == (35 if first else 31)


def test_a_string_without_a_key_is_refused() -> None:
    with pytest.raises(UsageError, match="no 2 of 2 letters stand once among 200"):
        every("ngram", "letters=2", "key=2", "length=200")


def test_a_tree_is_as_deep_as_a_random_one_and_a_chain_as_its_operations() -> None:
    """On average H(8) - 1 = 1.72 steps to the root, for 8 names each below any before."""
    parents = [{s[1]: s[3] for s in sentences(example.context)} for example in every(*TREE, count=400)]
    depths = [sum(1 for _ in ancestors(name, of)) for of in parents for name in of]
    assert np.mean(depths) == pytest.approx(1.72, abs=0.1)
    for example in every("gsm-symbolic", "ops=8", "noise=0", count=20):
        of = {s[1]: s[3] for s in sentences(example.context)}
        assert len(list(ancestors(example.questions[0].asked[2], of))) == 7


TREE = ("gsm-symbolic", "ops=8", "noise=0", "chain=0")


def ancestors(name: str, of: dict[str, str]) -> Iterator[str]:
    while (name := of[name]).startswith("V"):
        yield name


def test_gsm_sentences_are_as_many_as_promised() -> None:
    for example in every("gsm-symbolic", "noise=9"):
        assert len(sentences(example.context)) == example.questions[0].depth + 8
    for totals in (0, 1):
        found = every("gsm-worded", "noise=9", "most=20", f"totals={totals}", count=60)
        counts = [len(sentences(example.context)) - example.questions[0].depth - 1 - 9 for example in found]
        assert max(counts) == 0
        assert (min(counts) < 0) == bool(totals), "a total of n takes n - 1 more operations, and no sentence"
        assert any("total" in example.context for example in found) == bool(totals)
        assert all(1 <= int(example.questions[0].answer[0]) <= 20 for example in found)


@pytest.mark.parametrize("name", ["gsm-symbolic", "gsm-worded"])
def test_the_question_stands_first_or_last(name: str) -> None:
    for last, first in zip(every(name), every(name, "first=1"), strict=True):
        (asked,), (again,) = last.questions, first.questions
        question = asked.asked[:-2]
        assert (question[-1], again.asked) == ("?", ("Answer", ":"))
        assert first.context == (*question, *last.context)
        assert asked.answer == again.answer


TAILS = [
    ("khop", ("entities=4", "relations=2", "questions=2"), 5),
    ("depo", ("nodes=8", "questions=3"), 4),
    ("gsm-symbolic", ("noise=8",), 6),
    ("gsm-symbolic", ("noise=8", "chain=0"), 6),
    ("gsm-worded", ("noise=5",), 5),
]


@pytest.mark.parametrize(("name", "chosen", "tail"), TAILS)
def test_no_fact_that_ends_the_way_to_an_answer_is_in_the_tail(name: str, chosen: tuple[str, ...], tail: int) -> None:
    for wanted in (0, tail):
        found = every(name, *chosen, f"tail={wanted}", count=150)
        assert min(told_behind(name, example, q) for example in found for q in example.questions) == wanted


def told_behind(name: str, example: Example, question: Question) -> int:
    """How many facts are told behind the last that ends the way to an answer."""
    facts = sentences(example.context)
    if name == "depo":
        edges = re.findall(r"((?:a\d+ )*z\d+) ((?:a\d+ )*z\d+)", " ".join(example.context))
        ends = [to == " ".join(question.answer) for _, to in edges]
    elif name == "khop":
        ends = [fact[1:] == (question.asked[-1], *question.answer) for fact in facts]
    elif name == "gsm-worded":
        ends = [fact[1:6] == question.asked[3:8] for fact in facts]
    else:
        names = question.answer[:-1] if question.asked[0] == "Which" else question.asked[2:3]
        ends = [fact[1] in names for fact in facts]
    assert any(ends)
    return ends[::-1].index(True)


@settings(max_examples=30, deadline=None)
@given(seed=seeds, needles=st.integers(1, 3), each=st.integers(1, 3), tail=st.integers(0, 6))
def test_needles_are_told_in_noise_and_none_in_the_tail(seed: int, needles: int, each: int, tail: int) -> None:
    chosen = [f"needles={needles}", f"each={each}", f"tail={tail}", "length=24", "asked=1"]
    (example,) = examples(make_puzzle("needle", chosen), 1, seed)
    keys = Counter(word for word in example.context if word.startswith("k"))
    values = [word for word in example.context if word.startswith("v")]
    assert len(example.context) == 24
    assert sorted(keys.values()) == [each] * needles
    assert len(set(values)) == len(values) == needles * each
    assert all(word.startswith("n") for word in example.context[24 - tail :])


def test_chains_are_told_in_order_among_noise() -> None:
    """So one reading finds them, and another chain is there to be left out."""
    for example in every("tracking", "chains=3", "hops=3", "tail=5", count=60):
        lines = [example.context[i - 1 : i + 3] for i, word in enumerate(example.context) if word == "="]
        known: set[str] = set()
        for name, _, value, point in lines:
            assert point == "."
            assert name not in known
            assert value.startswith("v") or value in known
            known |= {name, value}
        assert (len(lines), len(example.context), len({v for *_, v, _ in lines if v.startswith("v")})) == (12, 128, 3)
        assert all(word.startswith("n") for word in example.context[-5:])


def test_fewer_nodes_are_drawn_as_the_original_trains() -> None:
    found = every("depo", "nodes=9", "questions=5", "fewer=1", count=2000)
    counts = Counter(len(re.findall(r"z\d+", " ".join(example.context))) // 2 for example in found)
    weights = {n: 1 / (n + 3) for n in range(3, 10)}
    assert set(counts) == set(weights)
    for n, weight in weights.items():
        assert counts[n] / 2000 == pytest.approx(weight / sum(weights.values()), abs=0.03)
    assert {min(n, 5) for n in counts} == {len(example.questions) for example in found}


@pytest.mark.parametrize("name", ["gsm-symbolic", "gsm-worded"])
def test_an_answer_may_be_one_word(name: str) -> None:
    for bare, stopped in zip(every(name, "stop=0"), every(name), strict=True):
        (question,), (other,) = bare.questions, stopped.questions
        assert (len(question.answer), (*question.answer, ".")) == (1, other.answer)
        assert (bare.context, question.asked) == (stopped.context, other.asked)


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
        ("rule110", "width=" + "9" * 10, "cannot be set"),
        ("gsm-symbolic", "chain=2", "chain has to be 0 to 1, and is 2"),
        ("rule110", "steps=", "cannot be set 'steps='"),
        ("rule110", "width=1,2", "cannot be set"),
        ("rule110", "widht=8", "cannot be set 'widht=8'"),
        ("khop", "hops=1,-2", "cannot be set"),
        ("khop", "relations=1", "with one relation there is one hop"),
        ("needle", "tail=63", "a length of 64 words has no room for a pair and a tail of 63"),
        ("needle", "needles=33", "a length of 64 words has no room for 33 pairs"),
        ("needle", "keys=0", "keys has to be 1 to 100000"),
        ("multivalue", "values=3", "1 needles of 4 need as many different keys and values, and there are 32 and 3"),
        ("multiquery", "asked=5", "5 keys are asked for, and 4 told"),
        ("tracking", "tail=89", "128 words have no room for 10 lines of 4 and a tail of 89"),
        ("tracking", "names=9", "chains have 10 different names and 2 values, and there are 9 and 64"),
        ("babilong", "facts=4", "questions need 1 to 3 facts, and not 4"),
        ("babilong", "places=1", "somebody who goes needs another place to go to"),
        ("babilong", "told=5", "5 sentences seldom tell 3 facts of anything"),
        ("babilong", "tail=193", "256 words have no room for 16 sentences of 4 and a tail of 193"),
        ("khop", "tail=21", "24 facts are too few for 4 questions and a tail of 21"),
        ("depo", "tail=66", "a tail of 66 needs 76 nodes in every example"),
        ("gsm-symbolic", "tail=16", "a tail of 16 needs more names of noise than 16"),
        ("gsm-worded", "tail=9", "a tail of 9 needs as much noise, and there is 8"),
        ("multikey", "keys=31", "32 pairs need as many keys and values, and there are 31 and 64"),
        ("multikey", "tail=1", "4 pairs are too few for 4 questions and a tail of 1"),
        ("depo", "letters=8", "8 letters do not give 75 names of 1 to 2 tokens"),
        ("depo", "questions=76", "76 questions start at different nodes, and there are 75"),
        ("depo", "shortest=3", "names cannot have 3 to 2 tokens"),
        ("gsm-symbolic", "noise=57", "8 operations and 57 names of noise need more than 64 names"),
        ("gsm-worded", "ops=56", "56 operations and a noise of 8 need more than 64 quantities"),
        ("gsm-worded", "most=7", "most has to be 8 or more, and is 7"),
        ("ngram", "letters=27", "there are 26 letters"),
        ("ngram", "letters=2", "a key of 3 different letters needs as many, and there are 2"),
        ("ngram", "answer=18", "a string of 20 letters has no room for a key of 3 and 18 more"),
    ],
)
def test_settings_that_cannot_be_are_refused(name: str, chosen: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make_puzzle(name, [chosen])


def test_settings_are_those_that_were_given() -> None:
    assert settings_of(make_puzzle("rule110", ["width=8", "steps=1,2"])) == {"width": 8, "states": 4, "steps": (1, 2)}
    with pytest.raises(UsageError, match="steps has to be"):
        Rule110(steps=())


def test_depo_names_are_of_all_lengths_and_letters() -> None:
    found = every("depo", "nodes=6", "letters=3", "longest=3", "questions=1", count=200)
    names = {name for example in found for name in re.findall(r"(?:a\d )*z\d", " ".join(example.context))}
    assert len(names) == 3 + 3**2 + 3**3
