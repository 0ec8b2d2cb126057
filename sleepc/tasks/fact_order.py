"""The order in which things are told: facts, statements among noise, a question before or after."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import chain

import numpy as np

from sleepc.tasks.puzzle import Example, Question, Words, named

NOISE = named("n", 8)


def shuffled(facts: Sequence[Words], asked: Collection[int], tail: int, rng: np.random.Generator) -> Words:
    """All facts in random order, those numbered in `asked` not among the last `tail`."""
    order = rng.permutation(len(facts)).tolist()
    if tail:
        early = dict(zip(rng.permutation(len(facts) - tail).tolist(), sorted(asked), strict=False))
        others = iter([i for i in order if i not in asked])
        order = [early[place] if place in early else next(others) for place in range(len(facts))]
    return tuple(chain.from_iterable([facts[i] for i in order]))


def among_noise(told: Sequence[Words], length: int, tail: int, rng: np.random.Generator) -> Words:
    """`length` words: what is told, in its order and anywhere among words of noise, of which `tail` or more follow."""
    words: list[str] = rng.choice(NOISE, length - sum(map(len, told))).tolist()
    places = np.sort(rng.integers(0, len(words) - tail + 1, len(told))).tolist()
    for place, statement in zip(reversed(places), reversed(told), strict=True):
        words[place:place] = statement
    return tuple(words)


def with_question(first: int, told: Words, question: Words, answer: Words, depth: int) -> Example:
    """What is told, and a question about it: before it (`first` = 1), or after it. "Answer:" is read last."""
    asked = ("Answer", ":")
    if first:
        return Example((*question, *told), (Question(asked, answer, depth),))
    return Example(told, (Question((*question, *asked), answer, depth),))
