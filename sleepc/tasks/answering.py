"""A program reads a text once and answers questions about it, each in a copy of its state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import nan

import numpy as np

from sleepc.runtime.session import Session
from sleepc.runtime.steps import FloatArray, Steps
from sleepc.tasks.asking import PIECE
from sleepc.tasks.planting import Ids
from sleepc.tasks.question_prompt import Prompts
from sleepc.verify.surprise import surprise

AT_ONCE = 1 << 30  # bytes of states and logits that are held at once


@dataclass(frozen=True)
class Answering:
    """Greedy answers of up to `most` tokens, which end with one of `ends` and contain none of `never`; `cut` takes the
    answer out of one.
    """

    most: int
    ends: tuple[int, ...] = ()
    never: tuple[int, ...] = ()
    cut: Callable[[Ids], Ids] = tuple

    def answer(self, steps: Steps, prompts: Prompts, given: Sequence[Ids] | None) -> list[tuple[Ids, float]]:
        """The program's answers, and its mean -log p of the tokens of `given` answers (its own ones for None), which
        is NaN for an empty answer.
        """
        session = Session(steps)
        for at in range(0, len(prompts.read), PIECE):
            session.feed([list(prompts.read[at : at + PIECE])], logits="none")
        return self.answer_in(session, prompts.asked, given)

    def answer_in(
        self, session: Session, questions: Sequence[Ids], given: Sequence[Ids] | None
    ) -> list[tuple[Ids, float]]:
        """The same of a session of one row, which has read a text, or has something that stands for it."""
        found: list[tuple[Ids, float]] = []
        rows = self._rows(session)
        for at in range(0, len(questions), rows):
            asked = questions[at : at + rows]
            copies = session.select_rows([0] * len(asked))
            first = copies.feed([list(rest) for rest in asked])
            answers = self._greedy(copies.select_rows(range(len(asked))))
            wanted = answers if given is None else given[at : at + rows]
            found += zip(answers, _mean_surprises(copies, first, wanted), strict=True)
        return found

    def _rows(self, session: Session) -> int:
        """Copies whose states, twice, and logits fit into AT_ONCE."""
        row = 2 * session.stats.state_bytes + 4 * session.steps.vocab * (self.most + 2)
        return int(max(AT_ONCE // row, 1))

    def _greedy(self, session: Session) -> list[Ids]:
        columns = list(session.generate(self.most, stop_ids=self.ends, never=self.never))
        rows = np.stack(columns, 1).tolist()
        return [self.cut(tuple(token for token in row if token >= 0 and token not in self.ends)) for row in rows]


def _mean_surprises(session: Session, first: FloatArray, given: Sequence[Ids]) -> list[float]:
    """Of the tokens given to each row; `first` [B,V] are the logits before them."""
    later = first[:, None][:, :0]
    if max(map(len, given)) > 1:
        later = session.feed([list(tokens[:-1]) for tokens in given], logits="all")
    found = []
    for row, tokens in enumerate(given):
        logits = np.concatenate([first[row : row + 1], later[row]])[: len(tokens)]
        found.append(float(surprise(logits, np.array([0, *tokens])).mean()) if tokens else nan)
    return found
