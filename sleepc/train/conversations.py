"""Texts with facts in them, and questions about these long after, asked as the model is used to."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sleepc.hf.tokenizer import Tokenizer
from sleepc.tasks.exchanges import Exchange, spelled
from sleepc.tasks.question_prompt import SHORTLY
from sleepc.train.pieces import Piece
from sleepc.train.planted_text import FILLERS
from sleepc.train.told_facts import Told, told_facts

Study = Callable[[str, int, int], list[Exchange]]
"""What a teacher asks itself about a text, so many times, and answers; the same for the same number (the last one)."""

PER_QUESTION = 110  # tokens of a piece, at least: of these some 35 are the question and its answer
TOLD = 0.75  # of a piece, at most: facts and questions; the rest is the text
READ = 0.6  # of a piece in which the teacher asks: the text; the rest are questions and answers
PER_TURN = 40  # tokens of such a piece, and
PER_FACT = 320  # for each fact that is told there
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
    study: Study | None = None
    studied: float = 0.0

    def among(self, pieces: Iterable[Piece], share: float, seed: int, start: int = 0) -> Iterator[Piece]:
        """The same pieces, a `share` of them as conversations. Which, and about what, depends on `seed` and the number
        of a piece, counted from `start`.
        """
        for number, piece in enumerate(pieces, start):
            chance = random.Random(f"{seed} {number}")
            drawn = chance.random()
            if drawn < share:
                piece = self.of(piece, chance)
            elif self.study is not None and drawn < share + self.studied:
                piece = self._studied(piece, chance, self.study)
            yield piece

    def of(self, piece: Piece, chance: random.Random) -> Piece:
        """A conversation about what a piece says, and facts that are told in between."""
        facts = told_facts(chance, max(self.length // PER_QUESTION, 1))
        told = [_amid(fact.told, chance) for fact in facts]
        shortly = f" {SHORTLY}" if chance.random() < 0.5 else ""
        while (used := len(self._ids(" ".join(told), facts, shortly))) > TOLD * self.length and len(facts) > 1:
            del facts[-1], told[-1]
        chance.shuffle(facts)
        return self._piece(piece, self._text(piece, told, self.length - used, chance), _turns(facts, shortly))

    def _studied(self, piece: Piece, chance: random.Random, study: Study) -> Piece:
        """A conversation about what a piece says, some facts among it, in which the teacher asks itself."""
        facts = told_facts(chance, max(self.length // PER_FACT, 1))
        told = [_amid(fact.told, chance) for fact in facts]
        room = round(READ * self.length) - len(self.tokenizer.encode(" ".join(told)))
        text = self._text(piece, told, room, chance)
        count = max(round((1 - READ) * self.length) // PER_TURN - len(facts), 1)
        turns = [*_turns(facts, f" {SHORTLY}"), *study(text, count, chance.getrandbits(32))]
        chance.shuffle(turns)
        return self._piece(piece, text, turns)

    def _text(self, piece: Piece, told: Sequence[str], room: int, chance: random.Random) -> str:
        """The beginning of a piece of `room` tokens, with what is told between its lines."""
        body = piece.tokens[self.opening :]
        lines = self.tokenizer.decode(body[: max(room, 0)].tolist()).splitlines() or [""]
        return _planted(lines, told, chance)

    def _piece(self, piece: Piece, text: str, turns: Sequence[Exchange]) -> Piece:
        ids = spelled(self.tokenizer, text, turns)
        return replace(piece, tokens=np.array(ids[: self.length], dtype=np.int64), labels=None, asks=True)

    def _ids(self, text: str, facts: Sequence[Told], shortly: str) -> list[int]:
        return spelled(self.tokenizer, text, _turns(facts, shortly))


def _turns(facts: Sequence[Told], shortly: str) -> list[Exchange]:
    return [Exchange(fact.question + shortly, fact.answer) for fact in facts]


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
