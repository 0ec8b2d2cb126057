"""What a cartridge learns from: what a teacher that has a part of the document in view says after it (self-study,
arXiv 2506.06266).

Half of the lessons are turns in which the teacher asks itself and answers (tutor.py); in the others the part is read a
second time. Of what the teacher expects next the `TOP` most likely tokens are kept.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sleepc.hf.tokenizer import Tokenizer
from sleepc.progress import OnShare
from sleepc.runtime.in_turn import opening_of_turn, rest_of_turn
from sleepc.runtime.session import Session
from sleepc.runtime.steps import Steps
from sleepc.tasks.exchanges import Exchange
from sleepc.train.tutor import Tutor

TOP = 20
AGAIN = 96  # tokens that are read a second time


@dataclass(frozen=True)
class CartridgeLesson:
    """Tokens [T] that come after the document; bool `places` [T]: after which of them the teacher is followed, n. It
    expects `ids` [n,TOP] there, with log p `log_p`.
    """

    tokens: Tensor
    places: Tensor
    ids: Tensor
    log_p: Tensor

    def between(self, part: slice) -> tuple[Tensor, Tensor]:
        """`ids` and `log_p` of the places that are in a part of the tokens."""
        before = int(self.places[: part.start].sum())
        here = slice(before, before + int(self.places[part].sum()))
        return self.ids[here], self.log_p[here]


@dataclass(frozen=True)
class Study:
    """Parts of `part` tokens of a document, from all over it, each with `each` lessons of at most `longest` tokens."""

    tutor: Tutor
    part: int
    each: int
    longest: int

    def lessons(self, text: str, count: int, chance: random.Random, progress: OnShare) -> list[CartridgeLesson]:
        """`count` lessons on a text, the same ones for the same state of `chance`; fewer if the teacher says little."""
        ids, found = self.tutor.tokenizer.encode_part(text), list[CartridgeLesson]()
        for done in range(0, count, self.each):
            start = _somewhere(max(len(ids) - self.part, 0), done // self.each, -(-count // self.each), chance)
            found += self._of_part(ids[start : start + self.part], min(self.each, count - done), chance)
            progress(min(done + self.each, count) / count)
        return found

    def _of_part(self, part: Sequence[int], count: int, chance: random.Random) -> list[CartridgeLesson]:
        tokenizer = self.tutor.tokenizer
        text = tokenizer.decode(list(part)).strip()
        turns = self.tutor.turns(text, count // 2, chance)
        rests = [turn_after(tokenizer, turn) for turn in turns]
        again = count - len(rests)
        rests += [self._again(part, i, again, chance) for i in range(again)]
        rests = [(ids[: self.longest], begin) for ids, begin in rests if begin < min(len(ids), self.longest)]
        read = document_ids(tokenizer, text)
        return list(taught(self.tutor.steps(len(read) + self.longest), read, rests)) if rests else []

    def _again(self, part: Sequence[int], i: int, of: int, chance: random.Random) -> tuple[list[int], int]:
        """Stretch i of the part as it comes a second time; nothing can be known before its first tokens."""
        size = min(AGAIN, self.longest - 1, len(part))
        start = _somewhere(len(part) - size, i, of, chance)
        return [*self.tutor.tokenizer.encode_next("\n"), *part[start : start + size]], 1


def _somewhere(last: int, i: int, of: int, chance: random.Random) -> int:
    """A place from 0 to `last`: somewhere in share i of it, so that all `of` of them leave nothing out."""
    return chance.randint(i * last // of, (i + 1) * last // of)


@torch.no_grad()
def taught(teacher: Steps, read: Sequence[int], rests: Sequence[tuple[list[int], int]]) -> Iterator[CartridgeLesson]:
    """What a teacher that has `read` something expects of what comes after it, each (tokens, from which one on)."""
    session = Session(teacher)
    session.feed(list(read), logits="none")
    copies = session.select_rows([0] * len(rests))
    for row, (ids, begin) in zip(copies.feed([ids for ids, _ in rests], logits="all"), rests, strict=True):
        log_p = torch.from_numpy(np.ascontiguousarray(row[begin - 1 : len(ids)])).log_softmax(-1)
        top = log_p.topk(min(TOP, log_p.shape[-1]))
        yield CartridgeLesson(torch.tensor(ids), torch.arange(len(ids)) >= begin - 1, top.indices, top.values)


def document_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a document as the first message begins with it; as a text if there is no chat template."""
    template = tokenizer.template()
    if template is None:
        return tokenizer.encode(text)
    return [*tokenizer.encode_turns(opening_of_turn(template)), *tokenizer.encode_next(text)]


def request_ids(tokenizer: Tokenizer, request: str) -> list[int]:
    """The tokens of a request after the document, up to where its answer begins."""
    template = tokenizer.template()
    if template is None:
        return tokenizer.encode_next(f"\nQuestion: {request}\nAnswer:")
    return tokenizer.encode_turns(rest_of_turn(template, request), goes_on=True)


def turn_after(tokenizer: Tokenizer, turn: Exchange) -> tuple[list[int], int]:
    """A request and its answer after the document, and where the answer begins."""
    asked = request_ids(tokenizer, turn.request)
    space = "" if tokenizer.has_template() else " "
    return [*asked, *tokenizer.encode_next(space + turn.answer)], len(asked)
