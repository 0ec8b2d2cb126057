"""A teacher asks itself about texts, once, and answers as it does with the text before it."""

from __future__ import annotations

import json
import random
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import sleepc as package
from sleepc.backends.table import find_trainer
from sleepc.errors import SleepcError, SleepcWarning, UsageError
from sleepc.hf.tokenizer import Tokenizer, load_tokenizer
from sleepc.tasks.exchanges import Exchange, spelled
from sleepc.tasks.programs import full_attention_for
from sleepc.tasks.question_prompt import SHORTLY
from sleepc.train.conversations import Conversations
from sleepc.train.pieces import Piece
from sleepc.train.settings import make_settings
from sleepc.train.study_file import NAME, StudyFile
from sleepc.train.study_requests import ASK, SHOTS, requests, sentences
from sleepc.train.trainer import Hooks
from sleepc.train.tutor import Tutor
from tests import evaluations
from tests.cli.models import save_model
from tests.families import VOCAB, Family, family
from tests.train.test_conversations import TEMPLATE, save_letters

TEXT = """The heron of the mill stood in the shallow water for an hour. Nobody had seen it come.

Agnes Pell keeps 14 beehives behind the brick wall of the dairy. In August the honey
is sold at the gate, in jars of two sizes. def f(x): return x

- The ferry leaves at nine and comes back at noon.
- too short
"""


@pytest.fixture(scope="module", params=[TEMPLATE, None], ids=["chat", "base"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return save_letters(tmp_path_factory.mktemp("tokenizer"), request.param)


class Scripted(Tutor):
    """Says what `lines` have for what its prompts end with, and else a question and an answer of its own."""

    lines: ClassVar[dict[str, str]] = {}

    def _greedy(self, prompts: Sequence[Sequence[int]], most: int) -> list[str]:
        said = []
        for prompt in prompts:
            text = self.tokenizer.decode(list(prompt))
            known = next((line for end, line in self.lines.items() if re.search(end, text)), None)
            said.append(
                known
                or (
                    " is said of honey, heron, ferry, bees, beehives and seen?"
                    if ASK in text
                    else f" It is {len(text)}."
                )
            )
        return said


def scripted(tokenizer: Tokenizer, lines: dict[str, str] | None = None) -> Scripted:
    tutor = Scripted(lambda tokens: pytest.fail("no model is needed"), tokenizer, 256)
    object.__setattr__(tutor, "lines", lines or {})
    return tutor


def test_sentences_are_whole_and_on_one_line() -> None:
    assert sentences(f"{TEXT}\n{TEXT}") == [
        "The heron of the mill stood in the shallow water for an hour.",
        "Nobody had seen it come.",
        "Agnes Pell keeps 14 beehives behind the brick wall of the dairy.",
        "In August the honey is sold at the gate, in jars of two sizes.",
        "- The ferry leaves at nine and comes back at noon.",
    ]


def test_requests_are_of_several_kinds_and_each_about_another_sentence() -> None:
    made = requests(TEXT * 2, 5, random.Random(0))
    assert [each.text.split(" ")[0] for each in made] == ["", "How", "What", "How", "Which"]
    assert made == requests(TEXT * 2, 5, random.Random(0))
    assert made != requests(TEXT * 2, 5, random.Random(1))
    for each in made[1:4]:
        (quoted,) = re.findall('"(.+)"', each.text)
        assert quoted in " ".join(TEXT.split())
        assert each.answer in ("", quoted), "the answer goes on from what is quoted"
    assert made[0].about in sentences(TEXT)
    assert len(requests(TEXT, 50, random.Random(0))) == 5
    assert requests("def f(x): return x", 5, random.Random(0)) == []


def test_a_teacher_writes_a_question_and_answers_it_with_the_text_before_it(tokenizer: Tokenizer) -> None:
    turns = scripted(tokenizer).turns(TEXT, 5, random.Random(0))
    assert len(turns) == 5
    question, goes_on, shortly = turns[0], turns[1], re.escape(SHORTLY)
    assert re.fullmatch(
        rf"\w+( m\w+)? is said of honey, heron, ferry, bees, beehives and seen\? {shortly}", question.request
    )
    assert re.fullmatch(r"It is \d{3,}\.", question.answer), "it has read the text"
    (quoted,) = re.findall('"(.+)"', goes_on.request)
    assert goes_on.answer.startswith(f"{quoted} It is "), "the answer is the whole sentence"


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        (" It is here", None),
        (" It is here. And there.", "It is here."),
        (" It has 3.5 litres (about). Then", "It has 3.5 litres (about)."),
        (" so it is so it is so it is so it is.", None),
    ],
)
def test_an_answer_is_a_sentence_that_ends_and_does_not_loop(tokenizer: Tokenizer, line: str, kept: str | None) -> None:
    turns = scripted(tokenizer, {r'What does the text say about "': line}).turns(TEXT, 3, random.Random(0))
    found = [turn.answer for turn in turns if turn.request.startswith("What does the text say about")]
    assert found == ([kept] if kept else [])


@pytest.mark.parametrize("line", [" is", " is quite?\nNo", " is nice weather?", " \n"])
def test_what_is_no_question_about_the_sentence_becomes_a_request_for_a_detail(tokenizer: Tokenizer, line: str) -> None:
    turns = scripted(tokenizer, {re.escape(ASK): line}).turns(TEXT, 1, random.Random(0))
    assert [turn.request.startswith('What does the text say about "') for turn in turns] == [True]


def test_turns_are_spelled_as_the_model_knows_them(tokenizer: Tokenizer) -> None:
    turns = [Exchange("Who?", "Ann."), Exchange("When?", "At noon.")]
    whole = spelled(tokenizer, "A text.", turns)
    for count, begun in ((1, ""), (2, ""), (2, "At")):
        part = [*turns[: count - 1], Exchange(turns[count - 1].request, begun)]
        prompt = spelled(tokenizer, "A text.", part)
        assert prompt == whole[: len(prompt)]
        rest = tokenizer.decode(whole[len(prompt) :]).lstrip(" ")
        assert rest.startswith(turns[count - 1].answer.removeprefix(begun).lstrip(" "))


def teacher(folder: Path) -> tuple[Family, Tutor]:
    """A tiny llama of 64 positions that reads words, and what asks it."""
    llama = family("llama")
    tokenizer = load_tokenizer(save_model(folder))
    return llama, Tutor(full_attention_for(llama.canonical, find_trainer().steps), tokenizer, VOCAB)


def test_the_teacher_is_the_original_with_full_attention(tmp_path: Path) -> None:
    llama, tutor = teacher(tmp_path)
    prompts = [[5, 9, 3, 9, 11], [5, 9, 3, 10], [5, 9, 3, 9, 12, 13, 14, 15, 16, 17]]
    for prompt, said in zip(prompts, tutor._greedy(prompts, 9), strict=True):
        ids = list(prompt)
        for _ in range(9):
            ids.append(int(llama.logits(torch.tensor(ids)[None])[0, -1].argmax()))
        assert said.split() == [f"w{i}" for i in ids[len(prompt) :]]
    with pytest.raises(UsageError, match="the teacher has 64 positions, and a text with a request 79 tokens"):
        tutor._greedy([[5] * 70], 9)


def test_a_teacher_is_asked_once(tmp_path: Path) -> None:
    calls: list[tuple[str, int]] = []

    def ask(text: str, count: int, chance: random.Random) -> list[Exchange]:
        calls.append((text, count))
        return [Exchange(f"{text}?", f"{chance.random()} ü\n")] * count

    def file(teacher: str = "t", *, writes: bool = True) -> StudyFile:
        made = StudyFile(tmp_path / "work" / NAME, teacher, ask)
        made.writes = writes
        return made

    first = file()
    found = [first("one", 2, 5), first("two", 1, 5), first("one", 2, 6), first("one", 2, 5)]
    assert len(calls) == 3
    assert found[0] == found[3] != found[2]
    again = file()
    assert [again("one", 2, 5), again("two", 1, 5)] == found[:2]
    assert len(calls) == 3, "the file has them"
    assert file("another", writes=False)("one", 2, 5) == found[0]
    assert len(calls) == 4, "another teacher has answers of its own"
    path = tmp_path / "work" / NAME
    path.write_bytes(path.read_bytes()[:-9])  # a crash cut the last line
    assert [file()("one", 2, n) for n in (5, 6)] == [found[0], found[2]]
    assert len(calls) == 5
    assert [file()("one", 2, n) for n in (5, 6)] == [found[0], found[2]]
    assert len(calls) == 5


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"about": "x"}', '{"about": "x", "turns": [1]}', '{"about": 1, "turns": 2}']
)
def test_a_damaged_file_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / NAME).write_text(f'{{"about": "a", "turns": []}}\n{line}\n')
    with pytest.raises(SleepcError, match=r"line of answers.*line 2"):
        StudyFile(tmp_path / NAME, "t", lambda *args: [])


def test_a_studied_piece_has_told_facts_and_what_the_teacher_said(tokenizer: Tokenizer) -> None:
    def study(text: str, count: int, number: int) -> list[Exchange]:
        assert "heron of the mill" in text
        return [Exchange(f"Request {n}?", f"Answer {n}.") for n in range(count)]

    ids = np.array(tokenizer.encode(TEXT * 9), dtype=np.int64)
    made = Conversations(tokenizer, 3000, 0, study, 0.5)
    before = [Piece(ids[:3000])] * 12
    pieces = list(made.among(before, 0.3, 7))
    texts = [tokenizer.decode(piece.tokens.tolist()) for piece in pieces]
    studied = ["Request " in text for text in texts]
    assert 2 < sum(studied) < 11
    assert [piece.asks for piece in pieces] != studied, "others are about told facts alone"
    assert all(len(piece) <= 3000 for piece in pieces)
    again = made.among(before[5:], 0.3, 7, 5)
    assert [p.tokens.tolist() for p in again] == [p.tokens.tolist() for p in pieces[5:]]
    plain = list(Conversations(tokenizer, 3000, 0).among(before, 0.3, 7))
    for one, other, asks in zip(plain, pieces, studied, strict=True):
        assert np.array_equal(one.tokens, other.tokens) != asks, "without it the rest is the same"


def test_shares_that_are_more_than_all_are_refused() -> None:
    assert make_settings({"planted": 0.6, "studied": 0.4}).studied == 0.4
    with pytest.raises(UsageError, match=r"0\.7 and studied 0\.4"):
        make_settings({"planted": 0.7, "studied": 0.4})


def test_no_sentence_is_one_of_an_evaluation() -> None:
    measured = " ".join(" ".join(evaluations.texts()).split())
    assert not any(part in measured for shot in SHOTS for part in (shot.request, shot.answer))


def test_a_training_asks_before_its_first_step_and_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[str] = []

    def turns(self: Tutor, text: str, count: int, chance: random.Random) -> list[Exchange]:
        texts.append(text)
        return [Exchange("w1 w2", f"w3 w{chance.randrange(9)}")] * count

    monkeypatch.setattr(Tutor, "turns", turns)
    rng = random.Random(0)
    rows = (json.dumps(" ".join(f"w{rng.randrange(1, 60)}" for _ in range(45))) for _ in range(9))
    (tmp_path / "text.jsonl").write_text("\n".join(rows))
    converted = package.convert(save_model(tmp_path / "model"), {"window": 6, "sinks": 1})

    def learn(work: str, stop: int = 0, **options: Any) -> tuple[Any, list[float], list[float]]:
        shares, losses = list[float](), list[float]()
        hooks = Hooks(
            on_studying=shares.append,
            on_step=lambda step: losses.append(step.loss),
            should_stop=lambda: len(shares) == stop,
        )
        warnings.simplefilter("ignore", SleepcWarning)
        program = replace(converted, report={})
        told: dict[str, Any] = {
            "text": [tmp_path / "text.jsonl"],
            "work": tmp_path / work,
            "hooks": hooks,
            "device": "cpu",
        }
        told |= {"length": 20, "batch": 2, "steps": 4, "studied": 0.6, "force": True}
        return program.distil(**told, **options), shares, losses

    outcome, shares, losses = learn("work", stop=4)
    assert not outcome.finished
    assert losses == []
    assert shares == [0.125, 0.25, 0.375, 0.5]
    stopped = len(texts)
    outcome, shares, losses = learn("work")
    assert outcome.finished
    assert shares[-1] == 1
    assert len(losses) == 4
    asked = len(texts)
    assert 0 < stopped < asked == len(set(texts)) < 10
    assert learn("work")[2] == losses
    assert len(texts) == asked, "the folder has the answers"
    assert learn("other")[2] == losses
