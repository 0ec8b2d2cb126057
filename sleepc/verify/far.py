"""The longest stream of a verification, past the end of the real windows: every model reads it once."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from sleepc.ir.compare import absolute_error, max_error
from sleepc.runtime.steps import FloatArray, IntArray
from sleepc.verify.beyond import ENOUGH
from sleepc.verify.distance import cut, follow, full_attention, looked_at, perplexities
from sleepc.verify.memory_values import without_memories
from sleepc.verify.oracle import ReadStream
from sleepc.verify.report import PerplexityRow
from sleepc.verify.subject import Subject

LONG = 512  # windows up to here are read to their end, and beyond, with the oracle too
FARTHEST = 4096 + LONG  # tokens of the longest stream
COMPARED = 96 << 20  # bytes of logits that the oracle is asked for


def reach(subject: Subject) -> int:
    """How far a stream goes before everything that a conversion changes has been seen: the end of the window, and of
    the layers' own windows that were narrowed.
    """
    return max(subject.recipe.window, *subject.narrowed().values(), 0)


def long_enough(subject: Subject, perplexity: bool) -> int:
    """How many tokens are read: to the end of two windows if the oracle follows, and for perplexity well beyond
    `reach`, if that is not too far.
    """
    window, far = subject.recipe.window, reach(subject)
    count = 2 * window + max(subject.recipe.sinks, 4) + 4 if window <= LONG else min(window, LONG)
    if perplexity and window + ENOUGH <= FARTHEST:
        count = max(count, min(3 * window, 768), min(far + max(min(far, LONG), 2 * ENOUGH), FARTHEST))
    return min(count, len(subject.tokens))


@dataclass(frozen=True)
class Followed:
    """What the converted program made of the stream: errors of its logits inside the window against the original, and
    against the oracle, and surprises [T-1].
    """

    inside: float
    oracle: float
    surprise: Tensor


class Far:
    """The stream of one subject. With `inside` the first tokens, up to the window, are compared with the original."""

    def __init__(self, subject: Subject, *, inside: bool, perplexity: bool) -> None:
        self.subject, window = subject, subject.recipe.window
        self.tokens: IntArray = subject.tokens[: long_enough(subject, perplexity)]
        self.inside = min(subject.exact, LONG, len(self.tokens), subject.known) if inside else 0
        upto = min(len(self.tokens), 2 * window + max(subject.recipe.sinks, 4) + 4)
        self.upto = upto if window <= LONG and upto >= window + 2 else 0  # tokens that are compared with the oracle
        self.pieces = cut(window, len(self.tokens), subject.step.vocab)

    @cached_property
    def original(self) -> Tensor:
        """The original's logits [n,V] inside the window."""
        assert self.subject.original is not None
        return self.subject.original(torch.from_numpy(self.tokens[: self.inside])[None])[0]

    def known(self, tokens: Tensor) -> Tensor:
        """The same [1,n,V] of the first n of its tokens, read before."""
        return self.original[None, : tokens.shape[1]]

    @cached_property
    def followed(self) -> Followed:
        """The converted program reads the stream."""
        oracle = self._oracle()
        compared = self._compared()
        inside, far = [0.0], [0.0]

        def each(start: int, logits: FloatArray) -> None:
            found, end = torch.from_numpy(logits), start + len(logits)
            if start < self.inside:
                wanted = self.original[start:end]
                inside.append(absolute_error(found[: len(wanted)], wanted))
            places = compared[(compared >= start) & (compared < end)]
            if oracle is not None and len(places):
                with torch.no_grad():
                    far.append(max_error(found[places - start], oracle.logits_at(places)[0]))

        pieces = [replace(piece, read=True) if piece.start < self.inside else piece for piece in self.pieces]
        surprise = follow(self.subject.load(self.subject.step), self.tokens, pieces, each)
        finite = bool(surprise[looked_at(pieces)].isfinite().all())
        return Followed(max(inside), max(far) if finite else math.inf, surprise)

    def _oracle(self) -> ReadStream | None:
        oracle = self.subject.oracle(self.subject.step) if self.upto else None
        if oracle is None:
            return None
        with torch.no_grad():
            return oracle(torch.from_numpy(self.tokens[: self.upto])[None])

    def _compared(self) -> Tensor:
        """Tokens whose logits the oracle is asked for: all, or of a large vocabulary evenly spaced ones and those on
        either side of a sleep.
        """
        token, window = torch.arange(self.upto), self.subject.recipe.window
        every = max(-(-self.upto * 4 * self.subject.step.vocab // COMPARED), 1)
        return token[(token % every == 0) | (token % window == 0) | ((token + 1) % window == 0)]

    def perplexity(self) -> list[PerplexityRow]:
        """By distance: full attention, as far as the original's positions go, the window alone, and as converted."""
        subject = self.subject
        full = None
        if subject.original is not None:
            full = full_attention(self.tokens[: subject.known], self.pieces, subject.original_at)
        sliding = follow(subject.load(without_memories(subject.step)), self.tokens, self.pieces)
        return perplexities(subject.recipe.window, self.pieces, full, sliding, self.followed.surprise)
