"""Attention whose keys an indexer of the model picks: as long as there are no more keys than it may pick, it picks all.

Its choice is then none, and nothing of the indexer is left in the graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from sleepc.capture.fake_run import fake_run
from sleepc.capture.seam import PICKED
from sleepc.errors import Refusal

FAR = 1 << 20  # tokens: more than any indexer picks


@contextmanager
def noting_picked() -> Iterator[list[int]]:
    """Within it the list gets, of each attention layer that is told which keys to look at, how many those are."""
    found: list[int] = []
    before = PICKED.set(found)
    try:
        yield found
    finally:
        PICKED.reset(before)


def most_picked(call: nn.Module, device: torch.device) -> int:
    """Up to how many keys a model looks at all, of which some layer is told which to look at.

    Found by a run on fake tensors of so many tokens that the number of those that are picked is no longer theirs.
    Raises Refusal(UNKNOWN_OPTION) if that fails.
    """
    tokens = torch.zeros(1, FAR, dtype=torch.int64, device=device)
    with noting_picked() as found:
        try:
            fake_run(call, tokens, torch.arange(FAR, device=device)[None])
            return min(found)
        except Exception as error:  # the model's own code, which may raise anything
            raise Refusal(
                "UNKNOWN_OPTION",
                "attention is told which keys to look at, and it is not found up to how many it looks at all",
                fix="Please report the model.",
            ) from error
