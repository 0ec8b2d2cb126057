"""Conversations about told facts: what is asked was told before, in words that no evaluation has."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers

from sleepc.hf.tokenizer import Tokenizer, load_tokenizer
from sleepc.tasks.question_prompt import SHORTLY
from sleepc.train.conversations import Conversations
from sleepc.train.pieces import Piece, recalling
from sleepc.train.planted_text import planted_text
from sleepc.train.settings import make_settings, phases
from sleepc.train.streams import text_stream
from sleepc.train.told_facts import FACTS, told_facts
from tests import evaluations

LENGTH, WINDOW = 3000, 100
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
BEGIN = {"The", "It", "On", "A", "Room"}  # answers begin with them
PROSE = "\n".join(f"Line {n} of a text that says nothing much." for n in range(100))


def save_letters(folder: Path, template: str | None) -> Tokenizer:
    """A tokenizer of one token for each byte, with a chat template or without."""
    alphabet = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    library = Library(models.BPE(alphabet, []))
    library.pre_tokenizer, library.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    library.save(str(folder / "tokenizer.json"))
    if template is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return load_tokenizer(folder)


@pytest.fixture(scope="module", params=[TEMPLATE, None], ids=["chat", "base"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return save_letters(tmp_path_factory.mktemp("tokenizer"), request.param)


def prose(tokenizer: Tokenizer, count: int) -> Iterator[Piece]:
    for n in range(count):
        ids = tokenizer.encode(f"Text {n}.\n{PROSE}")[:LENGTH]
        yield Piece(np.array(ids, dtype=np.int64), place=(n, 0, len(ids)))


def talks(tokenizer: Tokenizer, count: int, share: float = 1.0, start: int = 0, seed: int = 3) -> list[Piece]:
    every = islice(prose(tokenizer, count), start, None)
    return list(Conversations(tokenizer, LENGTH, 0).among(every, share, seed, start))


def asked_in(text: str) -> list[tuple[str, str]]:
    """Questions and answers that are whole."""
    text = text.replace(f" {SHORTLY}", "")
    chat = re.findall(r"(?:<user>|\n)([^\n<>]+\?)</s><assistant>([^<>]+\.)", text)
    return chat or re.findall(r"Question: ([^\n]+\?)\nAnswer: ([^\n]+\.)", text)


def test_every_question_is_answered_by_what_the_text_tells(tokenizer: Tokenizer) -> None:
    for piece in talks(tokenizer, 4):
        assert piece.asks
        assert len(piece) <= LENGTH
        text = tokenizer.decode(piece.tokens.tolist())
        asked = asked_in(text)
        told = text[: text.index(asked[0][0])]
        assert len(asked) > 4
        assert told.count("that says nothing much") > 2, "the text goes on between the facts"
        for question, answer in asked:
            names = {word for word in re.findall(r"\w+", answer) if not word.islower()} - BEGIN
            assert names <= set(re.findall(r"\w+", told)), (question, answer)


def test_no_two_facts_answer_one_question() -> None:
    for seed in range(40):
        facts = told_facts(random.Random(seed), 12)
        assert len({fact.question for fact in facts}) == len(facts) >= 10
        assert not any("{" in sentence for fact in facts for sentence in (fact.told, fact.question, fact.answer))
        assert not any(re.search(r"\ba [aeiou]", fact.told) for fact in facts)


def test_some_pieces_become_conversations_and_others_stay(tokenizer: Tokenizer) -> None:
    before, after = list(prose(tokenizer, 12)), talks(tokenizer, 12, 0.5)
    same = [np.array_equal(a.tokens, b.tokens) for a, b in zip(before, after, strict=True)]
    assert [not piece.asks for piece in after] == same
    assert 2 < sum(same) < 10
    stretched = list(recalling(after, 1.0, WINDOW, 0, 0))
    for piece, made in zip(after, stretched, strict=True):
        assert np.array_equal(piece.tokens, made.tokens) == piece.asks, "stretches recur in the others alone"


def test_a_piece_depends_on_its_number_and_the_seed(tokenizer: Tokenizer) -> None:
    def tokens(pieces: list[Piece]) -> list[list[int]]:
        return [piece.tokens.tolist() for piece in pieces]

    every = tokens(talks(tokenizer, 8, 0.5))
    assert tokens(talks(tokenizer, 8, 0.5, start=5)) == every[5:]
    assert tokens(talks(tokenizer, 8, 0.5, seed=4)) != every


def test_a_stream_of_texts_has_them_with_a_teacher_only(tokenizer: Tokenizer) -> None:
    def stream(stages: str) -> list[Piece]:
        settings = make_settings({"stages": stages, "planted": 0.5, "recall": 0.0, "length": 700, "tokens": 9000})
        documents = [f"Text {n}.\n{PROSE}" for n in range(3)]
        made = text_stream(lambda: (iter([text]) for text in documents), tokenizer, settings, WINDOW)
        phase = phases(settings)[0]
        first, again = list(islice(made(phase, 0), 9)), list(islice(made(phase, 4), 5))
        assert [p.tokens.tolist() for p in first[4:]] == [p.tokens.tolist() for p in again], "resumed"
        return first

    assert 1 < sum(piece.asks for piece in stream("distil")) < 8
    assert not any(piece.asks for piece in stream("lengthen"))


def test_no_sentence_is_one_of_an_evaluation() -> None:
    def sentences(text: str) -> set[str]:
        return {" ".join(re.findall(r"\w+", part.lower())) for part in re.split(r"[.?!:\n]", text)} - {""}

    measured = {each for text in evaluations.texts() for each in sentences(text)}
    facts = [fact for seed in range(30) for fact in told_facts(random.Random(seed), 12)]
    told = {each for fact in facts for text in (fact.told, fact.question, fact.answer) for each in sentences(text)}
    assert len({fact.told for fact in FACTS}) >= 16
    assert not told & measured
    planted = {each for seed in range(30) for each in sentences(planted_text(seed))}
    assert not {each for each in planted & measured if len(each.split()) > 2}
