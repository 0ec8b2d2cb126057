"""Copying: a random segment comes again after some windows. (Repeat After Me, arXiv 2402.01032: key last.)"""

from __future__ import annotations

import numpy as np

from sleepc.errors import UsageError
from sleepc.tasks.planting import Item, Sample, Setup, plant
from sleepc.tasks.source import StreamSource

SEGMENT = 16  # tokens, or fewer if distances are closer


def copying(source: StreamSource, setup: Setup) -> list[Sample]:
    """Streams with one random segment at every distance. Its first quarter is given again, and the rest is to follow.

    Raises UsageError if distances leave no room for two tokens.
    """
    rng = np.random.default_rng(setup.seed)
    length = min(SEGMENT, setup.gap)
    if length < 2:
        raise UsageError("a segment needs two tokens", where="--distances", fix="Choose distances further apart.")
    cue = max(length // 4, 1)
    rows = []
    for _ in range(setup.samples):
        segments = [tuple(rng.choice(source.vocabulary, length).tolist()) for _ in setup.distances]
        rows.append([Item(s, s[:cue], (s[cue:],)) for s in segments])
    return plant(source, setup, rows, rng)
