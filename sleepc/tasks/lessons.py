"""Rows to train on, from examples: which token is to be said after which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sleepc.runtime.steps import IntArray
from sleepc.tasks.planting import Item, Sample
from sleepc.tasks.puzzle import go_on

NOTHING = -1  # the label if nothing is asked


@dataclass(frozen=True)
class Lesson:
    """`labels` [T]: what is to be said after each of `tokens` [T], or NOTHING. It need not be the next token."""

    tokens: IntArray
    labels: IntArray


def lessons(samples: Sequence[Sample]) -> list[Lesson]:
    """A row for each sample: its context, then all of its questions.

    If every question continues the one before and has one token as its answer (Rule 110), no answer is read: the row
    is the last question, with a label where each of them ends. Otherwise question and answer alternate, and the
    tokens of an answer are the labels from the end of its question on. A row ends with the last label.
    """
    return [_lesson(sample.tokens.tolist(), list(sample.items.values())) for sample in samples]


def _lesson(context: list[int], items: list[Item]) -> Lesson:
    tokens, labels = context.copy(), [NOTHING] * len(context)
    if _goes_on(items):
        tokens += items[-1].question
        labels += [NOTHING] * len(items[-1].question)
        for item in items:
            labels[len(context) + len(item.question) - 1] = item.candidates[0][0]
    else:
        for item in items:
            answer = item.candidates[0]
            tokens += (*item.question, *answer)
            labels += (*[NOTHING] * (len(item.question) - 1), *answer, NOTHING)
        del tokens[-1], labels[-1]
    return Lesson(np.array(tokens, dtype=np.int64), np.array(labels, dtype=np.int64))


def _goes_on(items: list[Item]) -> bool:
    """Does every question begin with the one before it, and have an answer of one token?"""
    return go_on([item.question for item in items]) and all(len(item.candidates[0]) == 1 for item in items)
