"""How surprising tokens are to a model, and the ranges that it is told for. Imports no torch."""

from __future__ import annotations

import numpy as np

from sleepc.runtime.steps import FloatArray, IntArray

AT_ONCE = 1 << 18  # numbers in one step: what is held of them stays in a processor's cache


def surprise(logits: FloatArray, tokens: IntArray) -> FloatArray:
    """-log p of tokens 1 .. under logits [n,V] of tokens 0 ..: float64 [len(tokens) - 1]."""
    following = tokens[1:]
    found: FloatArray = np.empty(len(following), np.float64)
    rows = max(AT_ONCE // max(logits.shape[-1], 1), 1)
    for at in range(0, len(following), rows):
        words = following[at : at + rows]
        known = logits[at : at + len(words)]
        known = known - known.max(-1, keepdims=True)
        chosen = known[np.arange(len(words)), words].astype(np.float64)
        np.exp(known, out=known)
        found[at : at + rows] = np.log(known.sum(-1, dtype=np.float64)) - chosen
    return found


def bounds(window: int, length: int) -> list[int]:
    """Token counts 1, L, 2L, 4L .. and the length: ends of the ranges that perplexity is given for."""
    ends = [1]
    step = window
    while step < length:
        ends.append(max(step, ends[-1]))
        step *= 2
    return sorted({*ends, length})
