"""Pieces to train on: documents as token ids, cut, shuffled, repeated, and put into batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count

import numpy as np

from sleepc.errors import UsageError
from sleepc.hf.tokenizer import Tokenizer
from sleepc.runtime.steps import IntArray
from sleepc.tasks.lessons import NOTHING
from sleepc.tasks.source import opening_of
from sleepc.train.texts import Document
from sleepc.verify.texts import says_something

TRIES = 32  # pieces among which one must say something
Stretch = tuple[int, int, int]
"""Of a text: the number of the document, its first token and the one after its last."""


@dataclass(frozen=True)
class Piece:
    """Token ids [n] that are read from an empty state. `labels` [n]: what is to be said after each of them, NOTHING
    if nothing is asked; None are the next tokens. `place` is where it was cut from a text; `asks`: it is a conversation
    with questions about what was told before.
    """

    tokens: IntArray
    labels: IntArray | None = None
    place: Stretch | None = None
    asks: bool = False

    def __len__(self) -> int:
        return len(self.tokens)

    def asked(self) -> IntArray:
        """The labels [n], whatever they are made of."""
        return self.labels if self.labels is not None else np.append(self.tokens[1:], NOTHING)

    def at_its_end(self, count: int) -> Piece:
        """The same, asked for its last `count` tokens alone."""
        labels = self.asked().copy()
        labels[: max(len(labels) - 1 - count, 0)] = NOTHING
        return replace(self, labels=labels)


def pieces(
    documents: Iterable[Document], tokenizer: Tokenizer, length: int, least: int, without: Sequence[Piece] = ()
) -> Iterator[Piece]:
    """Documents -> pieces of `length` tokens, in order; none holds tokens of two documents, or of pieces of the same
    documents that they are to be `without`, whatever the length of those.

    What the tokenizer puts before every text stands at the start of every piece, and counts. The rest of a document is
    a shorter piece, or dropped if it is shorter than `least`. Raises UsageError if no token has room, and if
    the tokenizer makes nothing of the text: before the first piece is given out.
    """
    opening = opening_of(tokenizer)
    if length <= len(opening):
        raise UsageError(
            f"pieces of {length} tokens have no room: the tokenizer puts {len(opening)} before every text",
            fix=f"Give a length above {len(opening)}.",
        )
    every = _sensible(_cut(documents, tokenizer, opening, length, least), len(opening))
    apart: dict[int, list[Stretch]] = {}
    for piece in without:
        if piece.place is not None:
            apart.setdefault(piece.place[0], []).append(piece.place)
    return (piece for piece in every if not _touches(piece, apart)) if apart else every


def _touches(piece: Piece, apart: Mapping[int, Sequence[Stretch]]) -> bool:
    assert piece.place is not None
    document, start, end = piece.place
    return any(start < last and first < end for _, first, last in apart.get(document, ()))


def _cut(
    documents: Iterable[Document], tokenizer: Tokenizer, opening: tuple[int, ...], length: int, least: int
) -> Iterator[Piece]:
    room = length - len(opening)
    for number, document in enumerate(documents):
        ids: list[int] = []
        start = 0
        for part in document:
            ids += tokenizer.encode_part(part)
            whole = len(ids) // room * room
            for at in range(0, whole, room):
                yield _piece(opening, ids[at : at + room], number, start + at)
            del ids[:whole]
            start += whole
        if ids and len(opening) + len(ids) >= least:
            yield _piece(opening, ids, number, start)


def _piece(opening: Sequence[int], ids: Sequence[int], document: int, start: int) -> Piece:
    return Piece(np.array([*opening, *ids], dtype=np.int64), place=(document, start, start + len(ids)))


def _sensible(every: Iterator[Piece], opening: int) -> Iterator[Piece]:
    """The same pieces, held back until one says something. Raises UsageError if the first TRIES, or all, do not."""
    held: list[Piece] = []
    for piece in every:
        held.append(piece)
        if _says_something(piece.tokens[opening:]) or len(held) == TRIES:
            break
    bodies = [piece.tokens[opening:] for piece in held]
    if held and not _says_something(bodies[-1]) and not says_something(np.concatenate(bodies).tolist()):
        raise UsageError(
            "the tokenizer cannot read this text: its tokens are mostly the same one",
            fix="Give a text in the model's language.",
        )
    yield from held
    yield from every


def _says_something(body: IntArray) -> bool:
    """One token alone tells nothing of the tokenizer."""
    return len(body) > 1 and says_something(body.tolist())


def shuffled(pieces: Iterable[Piece], seed: int, buffer: int, epoch: int = 0) -> Iterator[Piece]:
    """The same pieces in an order that `seed` and `epoch` decide; `buffer` of them lie in memory."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(epoch,)))
    held: list[Piece] = []
    for piece in pieces:
        if len(held) < max(buffer, 1):
            held.append(piece)
            continue
        at = int(rng.integers(len(held)))
        held[at], piece = piece, held[at]
        yield piece
    for at in rng.permutation(len(held)):
        yield held[at]


def recalling(
    pieces: Iterable[Piece], share: float, window: int, opening: int, seed: int, start: int = 0
) -> Iterator[Piece]:
    """The same pieces, a `share` of them with stretches that come again: half a window of tokens in every window from
    the third on, read more than a window before. Attention over the whole piece copies them, a memory has to learn to.

    The first `opening` tokens do not, and neither do conversations, which ask anyway. What becomes of a piece depends
    on `seed` and its number, counted from `start`.
    """
    size = window // 2
    for number, piece in enumerate(pieces, start):
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number,)))
        if rng.random() < share and size and not piece.asks:
            tokens = piece.tokens.copy()
            for at in range(2 * window, len(piece) - window + 1, window):
                if (last := at - window - size) > opening:
                    begin, to = int(rng.integers(opening, last)), at + int(rng.integers(window - size))
                    tokens[to : to + size] = tokens[begin : begin + size]
            piece = Piece(tokens)
        yield piece


def repeated(make: Callable[[int], Iterator[Piece]]) -> Iterator[Piece]:
    """The pieces of `make(epoch)`, epoch after epoch from 0 on, without an end. Raises UsageError for an empty one."""
    for epoch in count():
        empty = True
        for piece in make(epoch):
            empty = False
            yield piece
        if empty:
            raise UsageError(
                "the text gives no piece to train on: every document is shorter than the minimum length",
                fix="Give longer documents, or ask for shorter pieces.",
            )


def batch_of(pieces: Sequence[Piece]) -> tuple[IntArray, IntArray, IntArray]:
    """Pieces -> tokens [B,T], padded with 0 at the right, their lengths [B], and labels [B,T], padded with NOTHING."""
    lengths = np.array([len(piece) for piece in pieces], dtype=np.int64)
    shape = len(pieces), int(lengths.max(initial=0))
    tokens, labels = np.zeros(shape, dtype=np.int64), np.full(shape, NOTHING, dtype=np.int64)
    for row, piece in enumerate(pieces):
        tokens[row, : len(piece)], labels[row, : len(piece)] = piece.tokens, piece.asked()
    return tokens, lengths, labels
