"""Examples in the ids of a model: as text for its tokenizer, or each word by its place in the vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from sleepc.errors import UsageError
from sleepc.hf.tokenizer import Tokenizer
from sleepc.tasks.planting import Item, Sample
from sleepc.tasks.puzzle import Example, Words, text_of
from sleepc.tasks.source import opening_of

Spell = Callable[[Sequence[Example]], list[Sample]]


def choose_spelling(
    tokenizer: Tokenizer | None, vocabulary: Words, vocab: int, tried: Sequence[Example]
) -> tuple[Spell, bool]:
    """How a model of `vocab` tokens gets a task's examples, and whether that is as text: it is if its tokenizer gives
    the words of those that are `tried` back. Raises UsageError if it has fewer tokens than the task has words.
    """
    if tokenizer is not None and reads(tokenizer, tried, spell_as_text(tokenizer, tried)):
        return partial(spell_as_text, tokenizer), True
    return partial(_spell_by_place, _places(vocabulary, vocab)), False


def spell_as_text(tokenizer: Tokenizer, examples: Sequence[Example]) -> list[Sample]:
    """Samples whose items are the questions, by number."""

    def ids(words: Words) -> tuple[int, ...]:
        return tuple(tokenizer.encode_part(text_of(words)))

    opening = opening_of(tokenizer)
    found = []
    for example in examples:
        context = (*opening, *tokenizer.encode_part(text_of(example.context).strip()))
        items = {i: Item((), ids(q.asked), (ids(q.answer),)) for i, q in enumerate(example.questions)}
        found.append(Sample(np.array(context, dtype=np.int64), items))
    return found


def spell_as_ids(vocabulary: Words, vocab: int, examples: Sequence[Example]) -> list[Sample]:
    """The same, each word by its place in the vocabulary. Raises UsageError if the model has fewer tokens."""
    return _spell_by_place(_places(vocabulary, vocab), examples)


def _places(vocabulary: Words, vocab: int) -> dict[str, int]:
    if vocab < len(vocabulary):
        raise UsageError(
            f"the task has {len(vocabulary)} different words, and the model {vocab} tokens",
            where="--task",
            fix="Choose smaller settings (--set), or a model that was trained on this task.",
        )
    return {word: place for place, word in enumerate(vocabulary)}


def _spell_by_place(places: dict[str, int], examples: Sequence[Example]) -> list[Sample]:
    def ids(words: Words) -> tuple[int, ...]:
        return tuple(map(places.__getitem__, words))

    return [
        Sample(
            np.array(ids(example.context), dtype=np.int64),
            {i: Item((), ids(q.asked), (ids(q.answer),)) for i, q in enumerate(example.questions)},
        )
        for example in examples
    ]


def reads(tokenizer: Tokenizer, examples: Sequence[Example], samples: Sequence[Sample]) -> bool:
    """Do all words of the examples come back from the ids that they were spelled with, but for spaces and case?"""
    for example, sample in zip(examples, samples, strict=True):
        pairs = [(example.context, tuple(sample.tokens.tolist()))]
        for question, item in zip(example.questions, sample.items.values(), strict=True):
            pairs += [(question.asked, item.question), (question.answer, item.candidates[0])]
        for words, ids in pairs:
            if "".join(tokenizer.decode(list(ids)).split()).casefold() != "".join(words).casefold():
                return False
    return True
