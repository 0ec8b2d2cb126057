"""Texts with facts in them, and questions about these long after, asked as the model is used to."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sleepc.hf.tokenizer import Tokenizer
from sleepc.tasks.question_prompt import SHORTLY
from sleepc.train.pieces import Piece
from sleepc.train.planted_text import FILLERS
from sleepc.train.told_facts import Told, told_facts

PER_QUESTION = 110  # tokens of a piece, at least: of these some 35 are the question and its answer
TOLD = 0.75  # of a piece, at most: facts and questions; the rest is the text
FILLED = 0.5  # of the facts: with sentences around them that say little


@dataclass(frozen=True)
class Conversations:
    """Makes some of the pieces conversations of at most `length` tokens: a text, in which facts are told, and questions
    with their answers.

    The text is what the piece was. Questions are asked by the model's chat template, or without one after "Question:".
    """

    tokenizer: Tokenizer
    length: int
    opening: int

    def among(self, pieces: Iterable[Piece], share: float, seed: int, start: int = 0) -> Iterator[Piece]:
        """The same pieces, a `share` of them as conversations. Which, and about what, depends on `seed` and the number
        of a piece, counted from `start`.
        """
        for number, piece in enumerate(pieces, start):
            chance = random.Random(f"{seed} {number}")
            yield self.of(piece, chance) if chance.random() < share else piece

    def of(self, piece: Piece, chance: random.Random) -> Piece:
        """A conversation about what a piece says, and facts that are told in between."""
        facts = told_facts(chance, max(self.length // PER_QUESTION, 1))
        told = [_amid(fact.told, chance) for fact in facts]
        shortly = f" {SHORTLY}" if chance.random() < 0.5 else ""
        while (used := len(self._ids(" ".join(told), facts, shortly))) > TOLD * self.length and len(facts) > 1:
            del facts[-1], told[-1]
        chance.shuffle(facts)
        body = piece.tokens[self.opening :]
        lines = self.tokenizer.decode(body[: max(self.length - used, 0)].tolist()).splitlines() or [""]
        ids = self._ids(_planted(lines, told, chance), facts, shortly)
        return replace(piece, tokens=np.array(ids[: self.length], dtype=np.int64), labels=None, asks=True)

    def _ids(self, text: str, facts: Sequence[Told], shortly: str) -> list[int]:
        """The tokens of the text, and of all questions with their answers."""
        asked = [fact.question + shortly for fact in facts]
        if not self.tokenizer.has_template():
            turns = (f"\nQuestion: {q}\nAnswer: {fact.answer}" for q, fact in zip(asked, facts, strict=True))
            return self.tokenizer.encode(text + "".join(turns))
        messages = []
        for question, fact in zip(asked, facts, strict=True):
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": fact.answer}]
        messages[0] = {"role": "user", "content": f"{text}\n{asked[0]}"}
        last = messages.pop()
        return [*self.tokenizer.chat(messages), *self.tokenizer.encode_next(last["content"])]


def _amid(sentence: str, chance: random.Random) -> str:
    """A fact as it is, or amid sentences that say little."""
    if chance.random() >= FILLED:
        return sentence
    some = chance.sample(FILLERS, chance.randint(1, 3))
    some.insert(chance.randint(0, len(some)), sentence)
    return " ".join(some)


def _planted(lines: Sequence[str], told: Sequence[str], chance: random.Random) -> str:
    """The lines of a text, with what is told between them, in order."""
    places = sorted(chance.randint(0, len(lines)) for _ in told)
    found, start = [], 0
    for place, each in zip(places, told, strict=True):
        found += [*lines[start:place], each]
        start = place
    return "\n".join([*found, *lines[start:]])
