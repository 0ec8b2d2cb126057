"""Retrieval: which code belongs to a name that was told some windows ago? (RULER's needles, arXiv 2404.06654.)"""

from __future__ import annotations

import numpy as np

from sleepc.errors import UsageError
from sleepc.hf.tokenizer import Tokenizer
from sleepc.runtime.steps import IntArray
from sleepc.tasks.planting import Item, Sample, Setup, plant
from sleepc.tasks.source import StreamSource
from sleepc.verify.texts import says_something

DISTRACTORS = 7
PEOPLE = "Alice Bruno Clara David Elena Felix Grace Henry Irene James Karen Louis Maria Nadia Oscar Paula Quinn Robert"


def retrieval(source: StreamSource, setup: Setup) -> list[Sample]:
    """Streams with one pair at every distance: in words if the tokenizer has them, otherwise two random tokens and
    the third that goes with them. Distractors stand nowhere in the streams as codes.

    Raises UsageError for more distances than there are names, and a vocabulary that is too small.
    """
    rng = np.random.default_rng(setup.seed)
    count, tokenizer = len(setup.distances), source.tokenizer
    if tokenizer is not None and _spells(tokenizer):
        rows = [_in_words(tokenizer, count, rng) for _ in range(setup.samples)]
    else:
        rows = [_in_tokens(source.vocabulary, count, rng) for _ in range(setup.samples)]
    return plant(source, setup, rows, rng)


def _spells(tokenizer: Tokenizer) -> bool:
    """Are names and codes different tokens to it?"""
    return says_something(tokenizer.encode_part("The code of Alice is 4815.")) and tokenizer.encode_part(
        " 4815"
    ) != tokenizer.encode_part(" 2730")


def _in_words(tokenizer: Tokenizer, count: int, rng: np.random.Generator) -> list[Item]:
    names = rng.permutation(PEOPLE.split()).tolist()
    if count > len(names):
        raise UsageError(f"{count} distances: there are {len(names)} names", where="--distances", fix="Give fewer.")
    codes = (1000 + rng.choice(9000, (count, 1 + DISTRACTORS), replace=False)).tolist()

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode_part(text))

    return [
        Item(
            ids(f"\nThe code of {name} is {own[0]}.\n"),
            ids(f"\nThe code of {name} is"),
            tuple(ids(f" {code}") for code in own),
        )
        for name, own in zip(names[:count], codes, strict=True)
    ]


def _in_tokens(vocabulary: IntArray, count: int, rng: np.random.Generator) -> list[Item]:
    if len(vocabulary) < count + DISTRACTORS:
        raise UsageError(
            f"{count} pairs and {DISTRACTORS} distractors need {count + DISTRACTORS} different tokens, and there are "
            f"{len(vocabulary)}",
            fix="Give fewer --distances, or a --text with more different tokens.",
        )
    keys = np.stack([rng.permutation(vocabulary)[:count], rng.choice(vocabulary, count)], 1).tolist()
    shuffled = rng.permutation(vocabulary).tolist()
    values, others = shuffled[:count], shuffled[count:]
    items = []
    for key, value in zip(keys, values, strict=True):
        wrong = rng.permutation(others)[:DISTRACTORS].tolist()
        items.append(Item((*key, value), tuple(key), tuple((v,) for v in (value, *wrong))))
    return items
