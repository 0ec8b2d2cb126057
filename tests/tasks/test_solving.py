"""Scores of puzzles: exact for who knows the answer, the constant's for who was told nothing, whatever the batch is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as Inner
from tokenizers.decoders import ByteLevel as Decoder
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Whitespace

from sleepc.backends.eager.backend import load
from sleepc.errors import UsageError
from sleepc.hf.tokenizer import Tokenizer
from sleepc.runtime.steps import Array, FloatArray, IntArray, Logits, Steps
from sleepc.tasks.asking import most_rows
from sleepc.tasks.planting import Sample
from sleepc.tasks.puzzle import Example, Question, examples
from sleepc.tasks.puzzles import PUZZLES, make_puzzle
from sleepc.tasks.solving import Solving
from sleepc.tasks.spelling import choose_spelling, reads, spell_as_ids, spell_as_text
from sleepc.tasks.task import Row
from sleepc.verify.memory_values import shaken, without_memories
from tests.families import VOCAB, family
from tests.tasks.recall import Recall, State
from tests.tasks.test_puzzles import SMALL


class Oracle(Recall):
    """A model that knows every example by heart, but finds its answer only while all of it is in its reach."""

    def __init__(self, samples: Sequence[Sample], reach: int, vocab: int) -> None:
        super().__init__(reach, 8, vocab)
        self.known: dict[tuple[int, ...], int] = {}
        for sample in samples:
            for item in sample.items.values():
                text = [*sample.tokens.tolist(), *item.question]
                for token in item.candidates[0]:
                    self.known[tuple(text)] = token
                    text.append(token)

    def after(self, held: Array) -> FloatArray:
        logits = np.zeros(self.vocab, np.float32)
        logits[self.known.get(tuple(held[held >= 0].tolist()), 0)] = 1
        return logits


class Emptied:
    """A model whose copies for the questions have forgotten everything: memories are zero, the window is empty."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps

    def __getattr__(self, name: str) -> Any:
        return getattr(self.steps, name)

    def select_rows(self, state: Any, rows: IntArray) -> Any:
        now, new = self.steps.to_named_arrays(state), self.steps.new_state(len(rows))
        clocks = {name: now[name][rows] for name in ("position", "since", "slept")}
        return self.steps.from_named_arrays({**self.steps.to_named_arrays(new), **clocks})


def solving(name: str, count: int = 6, seed: int = 0) -> Solving:
    puzzle = make_puzzle(name, SMALL[name])
    made = examples(puzzle, count, seed)
    return Solving(puzzle.by, made, spell_as_ids(puzzle.vocabulary, len(puzzle.vocabulary), made))


def rows(task: Solving, steps: Steps, limit: int = 10**6) -> list[Row]:
    return task.rows(steps, limit, lambda share: None)


def close(a: Sequence[Row], b: Sequence[Row], tolerance: float = 1e-5) -> bool:
    same = [x.keys() == y.keys() and all(abs(x[k] - y[k]) < tolerance for k in x) for x, y in zip(a, b, strict=True)]
    return bool(same) and all(same)


@pytest.mark.parametrize("name", PUZZLES)
def test_who_knows_gets_everything(name: str) -> None:
    task = solving(name)
    vocab = len(make_puzzle(name, SMALL[name]).vocabulary)
    found = rows(task, Oracle(task.samples, task.length, vocab))
    assert found
    for row in found:
        assert (row["accuracy"], row["exact"]) == (1, 1)
    assert sum(row["count"] for row in found) == sum(len(example.questions) for example in task.examples)
    assert rows(task, Oracle(task.samples, task.length, vocab), task.length - 1) == []


@pytest.mark.parametrize("name", PUZZLES)
def test_who_lost_the_context_gets_what_a_constant_gets(name: str) -> None:
    """An oracle that holds the question and not the context always says token 0."""
    task = solving(name, count=40)
    longest = max(
        len(item.question) + len(c) for s in task.samples for item in s.items.values() for c in item.candidates
    )
    vocab = len(make_puzzle(name, SMALL[name]).vocabulary)
    for steps in (Oracle(task.samples, longest, vocab), Emptied(Oracle(task.samples, task.length, vocab))):
        for row in rows(task, steps):
            right = [
                set(item.candidates[0]) == {0}
                for sample, example in zip(task.samples, task.examples, strict=True)
                for item, question in zip(sample.items.values(), example.questions, strict=True)
                if question.depth == row[task.by]
            ]
            assert row["accuracy"] == pytest.approx(np.mean(right))
            assert row["accuracy"] <= row["constant_accuracy"]
            assert row["exact"] <= row["constant_exact"] + 1e-9


@pytest.mark.parametrize("name", PUZZLES)
def test_a_model_whose_state_was_emptied_answers_the_same_whatever_it_had_read(name: str) -> None:
    """Memories zeroed and window emptied: nothing of a context is left, in a real program, memories wide open."""
    task = solving(name)
    others = [sample.tokens for sample in solving(name, seed=9).samples]
    other = replace(
        task,
        samples=[replace(s, tokens=np.resize(t, len(s.tokens))) for s, t in zip(task.samples, others, strict=True)],
    )
    steps = load(shaken(family("llama").convert()[0]))
    assert close(rows(task, Emptied(steps)), rows(other, Emptied(steps)), 1e-9)
    assert not close(rows(task, steps), rows(other, steps), 1e-9), "with its state it does not"


HIDDEN = [
    ("needle", "length=60", "tail=40"),
    ("multivalue", "length=60", "tail=40", "each=3"),
    ("multiquery", "length=60", "tail=40", "needles=3", "asked=2"),
    ("tracking", "length=60", "tail=40", "hops=1", "chains=2"),
]


@pytest.mark.parametrize(("name", "chosen"), [(name, chosen) for name, *chosen in HIDDEN])
def test_without_memories_what_was_told_beyond_the_windows_changes_nothing(name: str, chosen: list[str]) -> None:
    """Three blocks with a window of 8 and no sinks; the tail is longer than they reach together."""
    puzzle = make_puzzle(name, [*chosen, "values=8", "names=8" if name == "tracking" else "keys=8"])
    made = examples(puzzle, 4, 0)
    task = Solving(puzzle.by, made, spell_as_ids(puzzle.vocabulary, VOCAB, made))
    noise = [i for i, word in enumerate(puzzle.vocabulary) if word.startswith("n")]
    lost = [np.where(np.isin(s.tokens, noise), s.tokens, noise[0]) for s in task.samples]
    without = replace(task, samples=[replace(s, tokens=t) for s, t in zip(task.samples, lost, strict=True)])
    step, _ = family("llama").convert(sinks=0)
    assert close(rows(task, load(without_memories(step))), rows(without, load(without_memories(step))), 1e-9)
    assert not close(rows(task, load(shaken(step))), rows(without, load(shaken(step))), 1e-9)


@pytest.mark.parametrize("name", PUZZLES)
def test_batched_and_single_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task, step = solving(name), family("llama").convert()[0]
    for program in (shaken(step), without_memories(step)):
        steps = load(program)
        batched = rows(task, steps)
        with monkeypatch.context() as patched:
            patched.setattr("sleepc.tasks.asking.MEMORY", 1)
            assert most_rows(steps) == 1
            assert close(rows(task, steps), batched)


def test_figures_are_counted_by_depth() -> None:
    def example(*answers: tuple[str, int]) -> Example:
        return Example(("x",), tuple(Question(("?",), (word,), depth) for word, depth in answers))

    made = [example(("a", 1), ("a", 1), ("b", 2)), example(("a", 1), ("b", 1), ("b", 2))]
    samples = spell_as_ids(("x", "?", "a", "b"), 4, made)
    task = Solving("steps", made, samples)
    found = rows(task, Constant(2))
    assert [(r["steps"], r["accuracy"], r["exact"], r["count"]) for r in found] == [(1, 0.75, 0.5, 4), (2, 0, 0, 2)]
    assert [(r["constant_accuracy"], r["constant_exact"]) for r in found] == [(0.75, 0.5), (1, 1)]
    assert task.metrics == ("accuracy", "exact", "log_prob")
    single = Solving("steps", [example(("a", 1))], samples[:1])
    assert single.metrics == ("accuracy", "log_prob")


def test_half_an_answer_is_none() -> None:
    made = [Example(("x",), (Question(("?",), ("a", "b"), 1), Question(("?",), ("a", "a"), 1)))]
    (row,) = Solving("steps", made, spell_as_ids(("x", "?", "a", "b"), 4, made)).rows(
        Constant(2), 99, lambda share: None
    )
    assert (row["accuracy"], row["exact"], row["count"]) == (0.5, 0, 2)


class Constant(Recall):
    """Always the same token."""

    def __init__(self, token: int) -> None:
        super().__init__(4, vocab=4)
        self.token = token

    def wake(
        self, state: State, tokens: IntArray, lengths: IntArray, logits: Logits
    ) -> tuple[FloatArray | None, State]:
        found, state = super().wake(state, tokens, lengths, logits)
        return (None if found is None else np.broadcast_to(np.eye(4, dtype=np.float32)[self.token], found.shape)), state


def byte_level() -> Tokenizer:
    """One token for each byte: it reads everything."""
    letters = {letter: i for i, letter in enumerate(sorted(ByteLevel.alphabet()))}
    inner = Inner(BPE(letters, []))
    inner.pre_tokenizer = ByteLevel(add_prefix_space=False)
    inner.decoder = Decoder()
    return Tokenizer(inner, Path(), ())


@pytest.mark.parametrize("name", PUZZLES)
def test_text_says_what_the_words_say(name: str) -> None:
    puzzle, tokenizer = make_puzzle(name), byte_level()
    made = examples(puzzle, 3, 0)
    spelled = spell_as_text(tokenizer, made)
    assert reads(tokenizer, made, spelled)
    assert not reads(tokenizer, examples(puzzle, 3, 1), spelled)
    for example, sample in zip(made, spelled, strict=True):
        for question, item in zip(example.questions, sample.items.values(), strict=True):
            ids = [*sample.tokens.tolist(), *item.question, *item.candidates[0]]
            words = (*example.context, *question.asked, *question.answer)
            assert tokenizer.decode(ids).replace(" ", "") == "".join(words)


@pytest.mark.parametrize("name", PUZZLES)
def test_ids_are_places_in_the_vocabulary(name: str) -> None:
    words, made = make_puzzle(name).vocabulary, examples(make_puzzle(name), 3, 0)
    for example, sample in zip(made, spell_as_ids(words, len(words), made), strict=True):
        assert tuple(words[i] for i in sample.tokens) == example.context
        for question, item in zip(example.questions, sample.items.values(), strict=True):
            assert tuple(words[i] for i in item.question) == question.asked
            assert [tuple(words[i] for i in ids) for ids in item.candidates] == [question.answer]


def test_who_cannot_read_the_words_gets_their_places() -> None:
    puzzle = make_puzzle("rule110")
    made = examples(puzzle, 2, 0)
    for words in (["w0", "w1"], ["w0", "0", "1", "?"]):  # the second knows "?" and not "??"
        inner = Inner(WordLevel({word: i for i, word in enumerate(words)}, unk_token="w0"))
        inner.pre_tokenizer = Whitespace()
        tokenizer = Tokenizer(inner, Path(), ())
        assert not reads(tokenizer, made, spell_as_text(tokenizer, made))
        spell, as_text = choose_spelling(tokenizer, puzzle.vocabulary, 3, made)
        assert not as_text
        assert [s.tokens.tolist() for s in spell(made)] == [[int(bit) for bit in e.context] for e in made]
    spell, as_text = choose_spelling(byte_level(), puzzle.vocabulary, 1, made)
    assert as_text
    assert reads(byte_level(), made, spell(made))
    (sample,) = spell_as_ids(puzzle.vocabulary, 3, examples(puzzle, 1, 0))
    assert [str(token) for token in sample.tokens] == list(examples(puzzle, 1, 0)[0].context)
    with pytest.raises(UsageError, match="the task has 3 different words, and the model 2 tokens"):
        choose_spelling(None, puzzle.vocabulary, 2, made)
