"""Pieces to train on: documents as token ids, cut, shuffled, repeated, and put into batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from typing import TypeAlias

import numpy as np

from sleepc.errors import UsageError
from sleepc.hf.tokenizer import Tokenizer
from sleepc.runtime.steps import IntArray
from sleepc.tasks.source import opening_of
from sleepc.train.texts import Document
from sleepc.verify.texts import says_something

Piece: TypeAlias = IntArray
"""Token ids [n] of one document."""

TRIES = 32  # pieces among which one must say something


def pieces(documents: Iterable[Document], tokenizer: Tokenizer, length: int, least: int) -> Iterator[Piece]:
    """Documents -> pieces of `length` tokens, in order; none holds tokens of two documents.

    What the tokenizer puts before every text stands at the start of every piece, and counts. The rest of a document is
    a shorter piece, or dropped where it is shorter than `least`. Raises UsageError where no token has room, and where
    the tokenizer makes nothing of the text: before the first piece is given out.
    """
    opening = opening_of(tokenizer)
    if length <= len(opening):
        raise UsageError(
            f"pieces of {length} tokens have no room: the tokenizer puts {len(opening)} before every text",
            fix=f"Give a length above {len(opening)}.",
        )
    return _sensible(_cut(documents, tokenizer, opening, length, least), len(opening))


def _cut(
    documents: Iterable[Document], tokenizer: Tokenizer, opening: tuple[int, ...], length: int, least: int
) -> Iterator[Piece]:
    room = length - len(opening)
    for document in documents:
        ids: list[int] = []
        for part in document:
            ids += tokenizer.encode_part(part)
            whole = len(ids) // room * room
            for at in range(0, whole, room):
                yield np.array([*opening, *ids[at : at + room]], dtype=np.int64)
            del ids[:whole]
        if ids and len(opening) + len(ids) >= least:
            yield np.array([*opening, *ids], dtype=np.int64)


def _sensible(every: Iterator[Piece], opening: int) -> Iterator[Piece]:
    """The same pieces, held back until one says something. Raises UsageError where the first TRIES, or all, do not."""
    held: list[Piece] = []
    for piece in every:
        held.append(piece)
        if _says_something(piece[opening:]) or len(held) == TRIES:
            break
    bodies = [piece[opening:] for piece in held]
    if held and not _says_something(bodies[-1]) and not says_something(np.concatenate(bodies).tolist()):
        raise UsageError(
            "the tokenizer makes nothing of this text: its tokens are mostly the same one",
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

    The first `opening` tokens do not. What becomes of a piece depends on `seed` and its number, counted from `start`.
    """
    size = window // 2
    for number, piece in enumerate(pieces, start):
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number,)))
        if rng.random() < share and size:
            piece = piece.copy()
            for at in range(2 * window, len(piece) - window + 1, window):
                if (last := at - window - size) > opening:
                    begin, to = int(rng.integers(opening, last)), at + int(rng.integers(window - size))
                    piece[to : to + size] = piece[begin : begin + size]
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
                "the text gives no piece to train on: every document is shorter than the least length",
                fix="Give longer documents, or ask for shorter pieces.",
            )


def batch_of(pieces: Sequence[Piece]) -> tuple[IntArray, IntArray]:
    """Pieces -> tokens [B,T], padded with 0 at the right, and their lengths [B]."""
    lengths = np.array([len(piece) for piece in pieces], dtype=np.int64)
    tokens = np.zeros((len(pieces), int(lengths.max(initial=0))), dtype=np.int64)
    for row, piece in zip(tokens, pieces, strict=True):
        row[: len(piece)] = piece
    return tokens, lengths
