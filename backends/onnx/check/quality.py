"""What quantisation costs: a text read in float32 with the program's own weights, and by ONNX Runtime."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from sleepc.backends.check.reading import LARGE
from sleepc.backends.report import TEXT as CHECK
from sleepc.backends.report import Figure
from sleepc.runtime.session import Session
from sleepc.runtime.steps import FloatArray, IntArray, Steps

SAME = 1e-5  # KL of the same weights: sums in another order
TEXT = 1024  # tokens that are read
PIECE = 64  # of which logits are held
AT_ONCE = 1 << 18  # numbers in one step: what is held of them stays in a processor's cache
SINGLE = 32  # read one by one: one token has kernels of its own
CLOSE = 0.9  # a token counts as the likeliest if it has this share of the likeliest one's probability
BOUNDS = {"int8": (0.02, 0.95), "int4": (0.5, 0.6), "source": (0.02, 0.95)}
"""The largest mean KL in nats per token, and the least agreement about the likeliest token. docs/export.md has what was
measured.
"""


def read_text(steps: Steps, tokens: IntArray, each: Callable[[int, FloatArray], None]) -> None:
    """Logits [n, V] of `tokens`, piece by piece, the last ones token by token: `each(start, logits)`. Of a large
    vocabulary those of every other piece, and of every other single token.
    """
    session, single, every = Session(steps), len(tokens) - SINGLE, 2 if steps.vocab >= LARGE else 1
    pieces = [*pairwise([*range(0, single, PIECE), single]), *((at, at + 1) for at in range(single, len(tokens)))]
    for number, (start, end) in enumerate(pieces):
        if number % every:
            session.feed(tokens[None, start:end], logits="none")
        else:
            each(start, session.feed(tokens[None, start:end], logits="all")[0])


@dataclass
class Quality:
    """Sums over the tokens of a text: `read` of them were looked at, and `followed` by another."""

    tokens: IntArray
    read: int = 0
    followed: int = 0
    kl: float = 0.0
    agreed: int = 0
    surprise: npt.NDArray[Any] = field(default_factory=lambda: np.zeros(2))

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
        following = self.tokens[start + 1 : start + 1 + len(p)]
        at = np.arange(len(following))
        self.followed += len(following)
        self.surprise -= np.array([p[at, following].sum(dtype=np.float64), q[at, following].sum(dtype=np.float64)])
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
        before, after = np.exp(self.surprise / self.followed)
        return {"tokens": self.read, "before": float(before), "after": float(after)}


def _log_softmax(logits: FloatArray) -> npt.NDArray[Any]:
    """In the logits' own precision; sums are float64."""
    shifted: npt.NDArray[Any] = logits - logits.max(-1, keepdims=True)
    total = np.exp(shifted).sum(-1, keepdims=True, dtype=np.float64)
    shifted -= np.log(total)
    return shifted
