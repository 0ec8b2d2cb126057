"""Puzzles as a task: how many questions a program answers, compared with always giving the same answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sleepc.progress import OnShare
from sleepc.runtime.steps import Steps
from sleepc.tasks.asking import ask
from sleepc.tasks.planting import Sample
from sleepc.tasks.puzzle import Example, Question, Words
from sleepc.tasks.task import Row


@dataclass(frozen=True)
class Solving:
    """Examples, and the same in the ids of a model; figures are told apart by depth, which is called `by`.

    `accuracy`: how many questions get every token of their answer (the most likely token each time, which is what
    greedy decoding says). `exact`: how many examples get all. `constant_accuracy`, `constant_exact`: the same for
    always giving the most frequent answer.
    """

    by: str
    examples: Sequence[Example]
    samples: Sequence[Sample]
    chance: float | None = None

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the figures."""
        several = any(len(example.questions) > 1 for example in self.examples)
        return ("accuracy", "exact", "log_prob") if several else ("accuracy", "log_prob")

    @property
    def length(self) -> int:
        """Tokens of the longest example, with question and answer."""
        return max(sample.length for sample in self.samples)

    def rows(self, steps: Steps, limit: int, progress: OnShare) -> list[Row]:
        """See Task."""
        if limit < self.length:
            return []
        answers = [reply.right for _, reply in ask(steps, self.samples, progress)]
        questions = [question for example in self.examples for question in example.questions]
        solved = _shares(self.examples, [answer.hits == answer.tokens for answer in answers])
        constant = _shares(self.examples, _guessed(questions))
        rows = []
        for depth in sorted(solved):
            here = [answer for question, answer in zip(questions, answers, strict=True) if question.depth == depth]
            log_prob = sum(answer.likelihood for answer in here) / sum(answer.tokens for answer in here)
            figures = {**solved[depth], **{f"constant_{key}": share for key, share in constant[depth].items()}}
            rows.append({self.by: depth, **figures, "log_prob": log_prob, "count": len(here)})
        return rows


def _guessed(questions: Sequence[Question]) -> list[bool]:
    """Is it right to answer each with what is most often the answer at its depth?"""
    given: dict[int, Counter[Words]] = {}
    for question in questions:
        given.setdefault(question.depth, Counter())[question.answer] += 1
    return [question.answer == given[question.depth].most_common(1)[0][0] for question in questions]


def _shares(examples: Sequence[Example], right: Iterable[bool]) -> dict[int, Row]:
    """By depth, of questions in the order of examples: the share of right ones, and of examples with all right."""
    left = iter(right)
    found: dict[int, list[list[bool]]] = {}
    for example in examples:
        own: dict[int, list[bool]] = {}
        for question in example.questions:
            own.setdefault(question.depth, []).append(next(left))
        for depth, these in own.items():
            found.setdefault(depth, []).append(these)
    return {
        depth: {"accuracy": sum(map(sum, rows)) / sum(map(len, rows)), "exact": sum(map(all, rows)) / len(rows)}
        for depth, rows in found.items()
    }
