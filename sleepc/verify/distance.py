"""One long stream, followed piece by piece: how surprising each token is, and how far logits are from the oracle's."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from sleepc.ir.compare import max_error
from sleepc.runtime.session import Session
from sleepc.runtime.steps import IntArray, Steps
from sleepc.verify.report import PerplexityRow
from sleepc.verify.surprise import bounds, surprise

PIECE = 64  # tokens whose logits are held at once: vocabularies are large


def follow(
    steps: Steps, tokens: IntArray, wanted: Callable[[int, int], Tensor] | None = None, upto: int = 0
) -> tuple[Tensor, float]:
    """The surprise [T-1] of tokens 1 .. T-1, and the largest error of the first `upto` tokens' logits.

    `wanted(start, end)` gives the logits [end-start,V] to compare with.
    """
    session, surprises, error = Session(steps), [], 0.0
    for start in range(0, len(tokens), PIECE):
        end = min(start + PIECE, len(tokens))
        logits = session.feed(tokens[start:end], logits="all")[0]
        surprises.append(torch.from_numpy(surprise(logits, tokens[start : end + 1])))
        if wanted is not None and start < upto:
            known = min(end, upto)
            error = max(error, max_error(torch.from_numpy(logits[: known - start]), wanted(start, known)))
    return torch.cat(surprises), error


def perplexities(window: int, full: Tensor | None, sliding: Tensor, converted: Tensor) -> list[PerplexityRow]:
    """Rows of ranges of tokens, from surprises [T-1]; `full` may be shorter, where the original can read no further."""
    rows = []
    for start, end in pairwise(bounds(window, len(converted) + 1)):
        cut = slice(start - 1, end - 1)
        known = _exp(full[cut]) if full is not None and len(full) >= end - 1 else None
        rows.append(PerplexityRow(start, end, known, _exp(sliding[cut]), _exp(converted[cut])))
    return rows


def _exp(surprises: Tensor) -> float:
    mean = float(surprises.mean())
    return math.exp(mean) if mean < 700 else math.inf
