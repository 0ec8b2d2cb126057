"""What quantisation costs: a text read in float32 with the program's own weights, and by ONNX Runtime; then passages
of it once more, at several distances: how much less they surprise than at first is what the model recalls of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from sleepc.backends.check.reading import LARGE
from sleepc.backends.report import TEXT as CHECK
from sleepc.backends.report import Figure, RecallAt
from sleepc.runtime.session import Session
from sleepc.runtime.steps import FloatArray, IntArray, Steps

SAME = 1e-5  # KL of the same weights: sums in another order
TEXT = 1024  # tokens that are read
PIECE = 64  # of which logits are held
AT_ONCE = 1 << 18  # numbers in one step: what is held of them stays in a processor's cache
SINGLE = 32  # read one by one: one token has kernels of its own
AGAIN = 32  # tokens of a passage that is read again
CUE = 8  # of which so many say which one it is
DISTANCES = (0.5, 1.0, 2.0, 4.0)  # windows between a passage and the end of the text
CLOSE = 0.9  # a token counts as the likeliest if it has this share of the likeliest one's probability
BOUNDS = {"int8": (0.02, 0.95), "int4": (0.5, 0.6), "source": (0.02, 0.95)}
"""The largest mean KL in nats per token, and the least agreement about the likeliest token. docs/export.md has what was
measured.
"""


def read_text(steps: Steps, tokens: IntArray, each: Callable[[int, FloatArray], None]) -> Session:
    """Logits [n, V] of `tokens`, piece by piece, the last ones token by token: `each(start, logits)`. Of a large
    vocabulary those of every other piece, and of every other single token. The session is at the end of the text.
    """
    session, single = Session(steps), len(tokens) - SINGLE
    pieces = [*pairwise([*range(0, single, PIECE), single]), *((at, at + 1) for at in range(single, len(tokens)))]
    for number, (start, end) in enumerate(pieces):
        if number % _every(steps):
            session.feed(tokens[None, start:end], logits="none")
        else:
            each(start, session.feed(tokens[None, start:end], logits="all")[0])
    return session


def passages(steps: Steps, count: int) -> list[int]:
    """Where passages of AGAIN tokens begin in a text of `count` tokens, the nearest first: as far from its end as
    DISTANCES say or a little further, in pieces of which there are logits, and not at the text's beginning, which
    attention may see for good.
    """
    found = []
    for windows in DISTANCES:
        end = min(count - round(windows * steps.window), count - SINGLE)
        start = (end - AGAIN) // AGAIN * AGAIN
        while start // PIECE % _every(steps):
            start -= AGAIN
        if start >= AGAIN and start not in found:
            found.append(start)
    return found


def read_again(session: Session, tokens: IntArray, starts: Sequence[int]) -> list[FloatArray]:
    """Surprise [AGAIN - CUE] of each passage, read as what comes next in the session's text."""
    now, found = session.snapshot(), []
    for start in starts:
        passage = tokens[start : start + AGAIN]
        found.append(_surprise(_log_softmax(session.feed(passage[None], logits="all")[0]), passage[1:])[CUE - 1 :])
        session.restore(now)
    return found


def _every(steps: Steps) -> int:
    return 2 if steps.vocab >= LARGE else 1


@dataclass
class Quality:
    """Sums over the tokens of a text, of which `read` were looked at, and how much each of them surprised [2, T]: in
    float32, and by ONNX Runtime; NaN where nothing was looked at.
    """

    tokens: IntArray
    read: int = 0
    kl: float = 0.0
    agreed: int = 0

    def __post_init__(self) -> None:
        self.surprise = np.full((2, len(self.tokens)), np.nan)

    def add(self, start: int, found: FloatArray, expected: FloatArray) -> None:
        """The logits [n, V] of tokens from `start` on, by ONNX Runtime and in float32."""
        rows = max(AT_ONCE // found.shape[-1], 1)
        for at in range(0, len(found), rows):
            self._add(start + at, _log_softmax(found[at : at + rows]), _log_softmax(expected[at : at + rows]))

    def _add(self, start: int, q: npt.NDArray[Any], p: npt.NDArray[Any]) -> None:
        """log probabilities [n, V] of the same tokens."""
        chosen = np.take_along_axis(p, q.argmax(-1)[:, None], -1)[:, 0]
        self.agreed += int((chosen >= p.max(-1) + math.log(CLOSE)).sum())
        self.read += len(p)
        following = slice(start + 1, start + 1 + len(p))
        for row, logs in zip(self.surprise, (p, q), strict=True):
            row[following] = _surprise(logs, self.tokens[following])
        np.subtract(p, q, out=q)
        self.kl += float(np.multiply(np.exp(p, out=p), q, out=q).sum(dtype=np.float64))

    def rows(self, precision: str) -> list[Figure]:
        """The figures against their bounds."""
        most, least = BOUNDS[precision]
        text = f"{self.read} tokens, against float32 with weights as they were"
        return [
            Figure(CHECK, "KL per token", self.kl / self.read, most, f"{text}, in nats"),
            Figure(CHECK, "likeliest token", self.agreed / self.read, least, f"{text}: the same", least=True),
        ]

    def exact_rows(self, *, lossless: bool) -> list[Figure]:
        """Of products whose activations are not rounded: what the weights alone cost."""
        text = f"{self.read} tokens, activations in float32"
        return [Figure(CHECK, "KL per token, exact", self.kl / self.read, SAME, text)] if lossless else []

    def perplexity(self) -> dict[str, float]:
        """Before, in float32, and after."""
        before, after = np.exp(np.nanmean(self.surprise, axis=1))
        return {"tokens": self.read, "before": float(before), "after": float(after)}

    def recall(
        self, starts: Sequence[int], before: Sequence[FloatArray], after: Sequence[FloatArray]
    ) -> list[RecallAt]:
        """Of each passage, from its surprises [n] when it was read again, in float32 and by ONNX Runtime."""
        found: list[RecallAt] = []
        for start, *again in zip(starts, before, after, strict=True):
            end = start + AGAIN
            less = np.nanmean(self.surprise[:, start + CUE : end] - np.stack(again), axis=1)
            found.append({"tokens": len(self.tokens) - end, "before": float(less[0]), "after": float(less[1])})
        return found


def _surprise(logs: FloatArray, following: IntArray) -> FloatArray:
    """Log probabilities [n, V], and the tokens [n or less] that came -> nats."""
    return -logs[np.arange(len(following)), following]


def _log_softmax(logits: FloatArray) -> npt.NDArray[Any]:
    """In the logits' own precision; sums are float64."""
    shifted: npt.NDArray[Any] = logits - logits.max(-1, keepdims=True)
    total = np.exp(shifted).sum(-1, keepdims=True, dtype=np.float64)
    shifted -= np.log(total)
    return shifted
