"""What streams are made of: the tokens of a text if the model can read it, otherwise random tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sleepc.errors import UsageError
from sleepc.hf.tokenizer import Tokenizer
from sleepc.runtime.steps import IntArray
from sleepc.verify.texts import default_text, says_something

ALL = 10_000_000  # characters: the whole of the text that is on every machine


@dataclass(frozen=True)
class StreamSource:
    """`ids` [n] of one long text; `vocabulary`, the different ids that random tokens are drawn from; `opening`, what
    the tokenizer puts before every text. `tokenizer` is None if the model cannot read text.
    """

    ids: IntArray
    vocabulary: IntArray
    opening: tuple[int, ...] = ()
    tokenizer: Tokenizer | None = None

    def pieces(self, count: int, length: int, rng: np.random.Generator) -> list[IntArray]:
        """`count` pieces of `length` tokens, each from its own part of the text. Raises UsageError for a short text."""
        room = len(self.ids) - length
        if room < count - 1:
            raise UsageError(
                f"the text has {len(self.ids)} tokens, too few for {count} streams of {length}",
                where="--text",
                fix="Give a longer text, fewer --samples or shorter --distances.",
            )
        edges = np.linspace(0, room + 1, count + 1).astype(int)
        return [self.ids[at : at + length] for at in rng.integers(edges[:-1], edges[1:])]


def make_source(
    tokenizer: Tokenizer | None, text: str | None, vocab: int, tokens: int, rng: np.random.Generator
) -> StreamSource:
    """The source of `text`, or of one that is on every machine; of `tokens` random tokens if it can read none.

    Raises UsageError if the tokenizer makes nothing of the text that was asked for.
    """
    if tokenizer is not None:
        ids = np.array(tokenizer.encode_part(text if text is not None else default_text(ALL)), dtype=np.int64)
        if says_something(ids.tolist()):
            return StreamSource(ids, np.unique(ids), opening_of(tokenizer), tokenizer)
    if text is not None:
        raise UsageError(
            "the tokenizer cannot read this text", where="--text", fix="Give a text in the model's language."
        )
    ids = np.setdiff1d(np.arange(vocab), tokenizer.holes(vocab) if tokenizer is not None else [])
    return StreamSource(ids[rng.integers(0, len(ids), tokens)], ids)


def opening_of(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids that stand before every text (a mark of its beginning, say)."""
    whole, part = tokenizer.encode("a"), tokenizer.encode_part("a")
    extra = len(whole) - len(part)
    return tuple(whole[:extra]) if whole[extra:] == part else ()
