"""Read streams with a program, and see what it makes of the questions; or how surprised it is by a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np

from sleepc.progress import OnShare
from sleepc.runtime.session import Session
from sleepc.runtime.steps import FloatArray, IntArray, Steps
from sleepc.tasks.planting import Ids, Item, Sample
from sleepc.verify.surprise import surprise

PIECE = 256  # tokens of every row in one call
FEW = 64  # if all their logits are wanted: vocabularies are large
MEMORY = 256 << 20  # bytes of state held at once


@dataclass(frozen=True)
class Answer:
    """Of one candidate's tokens: log p of all, how many there are, and how many were the most likely ones."""

    likelihood: float
    tokens: int
    hits: int


@dataclass(frozen=True)
class Reply:
    """The answers to an item's candidates, the right one first."""

    answers: tuple[Answer, ...]

    @property
    def right(self) -> Answer:
        """The answer to the right candidate."""
        return self.answers[0]

    @property
    def rank(self) -> int:
        """1 if the right candidate is the most likely one."""
        return 1 + sum(not self.right.likelihood > other.likelihood for other in self.answers[1:])

    @property
    def margin(self) -> float:
        """Log p of the right candidate over the mean of the others: 0 on average for a model that knows nothing."""
        others = [other.likelihood for other in self.answers[1:]]
        return self.right.likelihood - sum(others) / len(others)


def ask(steps: Steps, samples: Sequence[Sample], progress: OnShare) -> list[tuple[int, Reply]]:
    """(distance, reply) for every item of every stream, each asked in the state in which its stream left the model."""
    replies: list[tuple[int, Reply]] = []
    rows = most_rows(steps)
    for start in range(0, len(samples), rows):
        group = samples[start : start + rows]
        session = Session(steps, len(group))
        longest = max(len(sample.tokens) for sample in group)
        done = partial(_tell, progress, start, len(group), len(samples))
        for at in range(0, longest, PIECE):
            session.feed([sample.tokens[at : at + PIECE].tolist() for sample in group], logits="none")
            done(at / longest / 2)
        items = [(row, distance, item) for row, s in enumerate(group) for distance, item in s.items.items()]
        asked = [(row, item, candidate) for row, _, item in items for candidate in item.candidates]
        answers = iter(_answers(session, asked, rows, done))
        replies += [(distance, Reply(tuple(islice(answers, len(item.candidates))))) for _, distance, item in items]
    return replies


def _tell(progress: OnShare, start: int, rows: int, count: int, part: float) -> None:
    """`part` is the share of the rows from `start` on that is done."""
    progress((start + rows * part) / count)


def _answers(session: Session, asked: Sequence[tuple[int, Item, Ids]], rows: int, done: OnShare) -> list[Answer]:
    """An answer for each (row, item, candidate): copies of the rows read question and candidate, `rows` at a time."""
    found = []
    for start in range(0, len(asked), rows):
        group = asked[start : start + rows]
        copies = session.select_rows([row for row, _, _ in group])
        logits = copies.feed([[*item.question, *candidate[:-1]] for _, item, candidate in group], logits="all")
        for i, (_, item, candidate) in enumerate(group):
            first = len(item.question) - 1
            found.append(_answer(logits[i, first : first + len(candidate)], candidate))
        done(0.5 + start / len(asked) / 2)
    return found


def _answer(logits: FloatArray, tokens: Ids) -> Answer:
    """Of tokens [n], under the logits [n,V] of the tokens before them."""
    likelihood = -float(surprise(logits, np.array([0, *tokens])).sum())
    return Answer(likelihood, len(tokens), int((logits.argmax(-1) == tokens).sum()))


def surprises(steps: Steps, texts: IntArray, progress: OnShare) -> FloatArray:
    """-log p of tokens 1 .. of texts [B,T], each read from an empty state: [B,T-1]."""
    found = np.zeros((len(texts), texts.shape[1] - 1))
    rows = most_rows(steps)
    for start in range(0, len(texts), rows):
        group = texts[start : start + rows]
        session = Session(steps, len(group))
        for at in range(0, texts.shape[1] - 1, FEW):
            logits = session.feed(group[:, at : at + FEW], logits="all")
            for b, text in enumerate(group):
                found[start + b, at : at + FEW] = surprise(logits[b], text[at : at + FEW + 1])
            _tell(progress, start, len(group), len(texts), at / texts.shape[1])
    return found


def most_rows(steps: Steps) -> int:
    """Rows whose state fits into MEMORY; at least one."""
    return int(max(MEMORY // Session(steps).stats.state_bytes, 1))
