"""What programs answer about texts, compared with full attention and a sliding window: figures with standard errors.

A question counts if full attention answers it. Of those that count, the sliding window of equal bytes tells the ones
that need more than a window (`beyond`) from the rest (`within`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sleepc.errors import UsageError
from sleepc.hf.tokenizer import Tokenizer
from sleepc.progress import OnShare
from sleepc.tasks.answering import Answering
from sleepc.tasks.planting import Ids
from sleepc.tasks.question_file import Document
from sleepc.tasks.question_prompt import Prompts, answer_cut, make_prompts
from sleepc.tasks.readers import FULL, SLIDING, Reader

Figures = dict[str, Any]
Bools = np.ndarray[tuple[int], np.dtype[np.bool_]]
Place = tuple[tuple[str, int | None], ...]


@dataclass(frozen=True)
class Said:
    """An answer, what it is worth (0 to 1), and the mean -log p of the tokens of full attention's answer."""

    answer: str
    score: float
    nll: float


def make_recalling(
    tokenizer: Tokenizer, documents: Sequence[Document], vocab: int, window: int, answer: int, positions: int | None
) -> tuple[Recalling, list[str]]:
    """The questions for a model of `vocab` tokens, with answers of up to `answer` tokens; and a note for each text that
    has more tokens than the original has positions, which is left out. Raises UsageError if none is left.
    """
    ends = tokenizer.ends(tokenizer.template(), vocab)
    answering = Answering(answer, ends, tuple(tokenizer.holes(vocab)), answer_cut(tokenizer))
    every = [make_prompts(tokenizer, document) for document in documents]
    found = Recalling([p for p in every if positions is None or p.length + answer <= positions], answering, window)
    notes = [
        f"{p.document.name} is left out: it has {p.length} tokens, and the original {positions} positions"
        for p in every
        if p not in found.prompts
    ]
    if not found.prompts:
        raise UsageError(f"no text can be read: {notes[0]}", where="--questions", fix="Give shorter texts.")
    return found, notes


@dataclass
class Recalling:
    """Questions on texts, and what each model said to them, one after another; full attention has to be the first."""

    prompts: Sequence[Prompts]
    answering: Answering
    window: int
    full: list[list[Ids]] = field(default_factory=list)
    said: dict[str, list[Said]] = field(default_factory=dict)

    def ask(self, name: str, reader: Reader, tokenizer: Tokenizer, progress: OnShare) -> None:
        """Put all questions to a model."""
        said: list[Said] = []
        for i, prompts in enumerate(self.prompts):
            given = None if name == FULL else self.full[i]
            found = self.answering.answer(reader.steps(self.tokens(prompts)), prompts, given)
            if name == FULL:
                self.full.append([ids for ids, _ in found])
            for question, (ids, nll) in zip(prompts.document.questions, found, strict=True):
                text = tokenizer.decode(ids).strip()
                said.append(Said(text, question.score(text), nll))
            progress((i + 1) / len(self.prompts))
        self.said[name] = said

    def tokens(self, prompts: Prompts) -> int:
        """Of a text with its longest question and answer."""
        return prompts.length + self.answering.most

    @property
    def counts(self) -> Bools:
        """Does full attention answer the question?"""
        return np.array([said.score == 1 for said in self.said[FULL]])

    def totals(self) -> dict[str, Figures]:
        """The figures of every model, over all questions."""
        return {name: self._figures(name, np.ones(len(said), np.bool_)) for name, said in self.said.items()}

    def rows(self) -> list[Figures]:
        """The same by the depth of texts or, if they have none, by how long before the question its answer stood."""
        places = [place for prompts in self.prompts for place in self._places(prompts)]
        found: list[Figures] = []
        for place in sorted(set(places), key=lambda place: [-1 if end is None else end for _, end in place]):
            chosen = np.array([other == place for other in places])
            found += [{"model": name, **dict(place), **self._figures(name, chosen)} for name in self.said]
        return found

    def answers(self) -> list[Figures]:
        """Every question with its answers."""
        asked = [
            (p, question, at)
            for p in self.prompts
            for question, at in zip(p.document.questions, p.distances, strict=True)
        ]
        return [
            {
                "text": prompts.document.name,
                "question": question.question,
                "distance": distance,
                "answers": {name: vars(said[i]) for name, said in self.said.items()},
            }
            for i, (prompts, question, distance) in enumerate(asked)
        ]

    def _places(self, prompts: Prompts) -> list[Place]:
        depth = prompts.document.depth
        if depth is not None:
            return [(("tokens", depth),)] * len(prompts.asked)
        return [_range(distance, self.window) for distance in prompts.distances]

    def _figures(self, name: str, chosen: Bools) -> Figures:
        """Of the questions that are chosen."""
        said, full = self.said[name], self.said[FULL]
        scores = np.array([each.score for each in said])
        counted = chosen & self.counts
        found = {"asked": int(chosen.sum()), **_mean("score", scores[chosen]), **_hits(scores, counted)}
        if SLIDING in self.said:
            within = np.array([each.score == 1 for each in self.said[SLIDING]])
            found["beyond"], found["within"] = _hits(scores, counted & ~within), _hits(scores, counted & within)
        nll = np.array([each.nll for each in said])
        gaps = nll - np.array([each.nll for each in full])
        return {**found, **_mean("nll", nll[counted]), **_mean("gap", gaps[counted])}


def _range(distance: int | None, window: int) -> Place:
    """The range that a distance is in: up to a window, and from there on up to twice as far each time."""
    if distance is None:
        return ("from", None), ("to", None)
    start, end = 0, window
    while distance > end:
        start, end = end, 2 * end
    return ("from", start), ("to", end)


def _hits(scores: np.ndarray[tuple[int], np.dtype[np.float64]], counted: Bools) -> Figures:
    """How many of those that count are answered."""
    right = scores[counted] == 1
    return {"answered": int(right.sum()), "counted": int(counted.sum()), **_mean("share", right.astype(np.float64))}


def _mean(name: str, values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Figures:
    """A mean and its standard error; None if there are too few values."""
    mean = float(values.mean()) if len(values) else None
    error = float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
    return {name: mean, f"{name}_se": error}
