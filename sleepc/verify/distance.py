"""One long stream, read piece by piece: how surprising its tokens are, by how many stand before them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from sleepc.runtime.session import Session
from sleepc.runtime.steps import FloatArray, IntArray, Steps
from sleepc.verify.report import PerplexityRow
from sleepc.verify.surprise import bounds, surprise

PIECE = 64  # tokens whose logits are held at once: vocabularies are large
SPENT = 512 << 20  # bytes of the logits that are looked at


@dataclass(frozen=True)
class StreamPiece:
    """Tokens start .. end-1 of a stream; are the logits that follow them looked at?"""

    start: int
    end: int
    read: bool


def cut(window: int, length: int, vocab: int) -> list[StreamPiece]:
    """A stream of `length` tokens in pieces: as many of each range of distances (see `bounds`) are read as a large
    vocabulary allows, evenly spaced.
    """
    edges = [0, *(end - 1 for end in bounds(window, length)[1:])]
    most = max(SPENT // (4 * vocab * PIECE * max(len(edges) - 1, 1)), 2)
    pieces = []
    for start, end in pairwise(edges):
        starts = range(start, end, PIECE)
        step = max(len(starts) - 1, 1) / (most - 1)
        chosen = {round(i * step) for i in range(most)} if len(starts) > most else set(range(len(starts)))
        pieces += [StreamPiece(a, min(a + PIECE, end), i in chosen) for i, a in enumerate(starts)]
    return [*pieces, StreamPiece(length - 1, length, True)]  # no token follows the last one


def follow(
    steps: Steps, tokens: IntArray, pieces: Sequence[StreamPiece], each: Callable[[int, FloatArray], None] | None = None
) -> Tensor:
    """The surprise [T-1] of tokens 1 .. T-1, NaN where the piece before is not read; `each(start, logits)` gets the
    logits [n,V] of pieces that are.
    """
    session, found = Session(steps), torch.full((len(tokens) - 1,), math.nan, dtype=torch.float64)
    for piece in pieces:
        if not piece.read:
            session.feed(tokens[piece.start : piece.end], logits="none")
            continue
        logits = session.feed(tokens[piece.start : piece.end], logits="all")[0]
        _note(found, piece, logits, tokens)
        if each is not None:
            each(piece.start, logits)
    return found


def full_attention(
    tokens: IntArray, pieces: Sequence[StreamPiece], logits_at: Callable[[IntArray, Tensor], Tensor]
) -> Tensor:
    """The same of a model that reads `tokens` at once: `logits_at(tokens [T], places [n])` gives its logits [n,V]."""
    found = torch.full((len(tokens) - 1,), math.nan, dtype=torch.float64)
    pieces = [StreamPiece(p.start, min(p.end, len(tokens)), True) for p in pieces if p.read and p.start < len(tokens)]
    logits = logits_at(tokens, torch.cat([torch.arange(p.start, p.end) for p in pieces]))
    logits = logits if logits.dtype == torch.float64 else logits.float()
    parts = torch.split(logits, [p.end - p.start for p in pieces])
    for piece, part in zip(pieces, parts, strict=True):
        _note(found, piece, part.numpy(), tokens)
    return found


def looked_at(pieces: Sequence[StreamPiece]) -> Tensor:
    """Of which tokens 1 .. T-1 is the surprise known: bool [T-1]."""
    return torch.cat([torch.full((p.end - p.start,), p.read) for p in pieces])[:-1]


def _note(found: Tensor, piece: StreamPiece, logits: FloatArray, tokens: IntArray) -> None:
    following = surprise(logits, tokens[piece.start : piece.end + 1])
    found[piece.start : piece.start + len(following)] = torch.from_numpy(following)


def perplexities(
    window: int, pieces: Sequence[StreamPiece], full: Tensor | None, sliding: Tensor, converted: Tensor
) -> list[PerplexityRow]:
    """Rows of ranges of tokens, from surprises [T-1]; `full` may be shorter, if the original can read no further."""
    read, rows = looked_at(pieces), []
    for start, end in pairwise(bounds(window, len(converted) + 1)):
        at = slice(start - 1, end - 1)
        known = _exp(full[at][read[at]]) if full is not None and len(full) >= end - 1 else None
        figures = (known, _exp(sliding[at][read[at]]), _exp(converted[at][read[at]]))
        rows.append(PerplexityRow(start, end, *figures, int(read[at].sum())))
    return rows


def _exp(surprises: Tensor) -> float:
    mean = float(surprises.mean())
    return math.exp(mean) if mean < 700 else math.inf
