"""How surprising tokens are to a model, and the ranges that it is told for. Imports no torch."""

from __future__ import annotations

import numpy as np

from sleepc.runtime.steps import FloatArray, IntArray


def surprise(logits: FloatArray, tokens: IntArray) -> FloatArray:
    """-log p of tokens 1 .. under logits [n,V] of tokens 0 ..: float64 [len(tokens) - 1]."""
    following = tokens[1:]
    known = logits[: len(following)].astype(np.float64)
    known -= known.max(-1, keepdims=True)
    found: FloatArray = np.log(np.exp(known).sum(-1)) - known[np.arange(len(following)), following]
    return found


def bounds(window: int, length: int) -> list[int]:
    """Token counts 1, L, 2L, 4L .. and the length: ends of the ranges that perplexity is given for."""
    ends = [1]
    step = window
    while step < length:
        ends.append(max(step, ends[-1]))
        step *= 2
    return sorted({*ends, length})
