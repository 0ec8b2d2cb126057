"""Attention whose keys the model picks, by an indexer or by numbers in its mask: as long as there are no more keys than
it may pick, it picks all.

Its choice is then none, and nothing of what makes it is left in the graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sleepc.capture.fake_run import fake_run
from sleepc.capture.seam import PICKED
from sleepc.errors import Refusal

FAR = 1 << 20  # tokens: more than any model picks


@contextmanager
def noting_picked() -> Iterator[list[str]]:
    """Within it the list gets, of each attention layer that may be told which keys to look at, what tells it."""
    found: list[str] = []
    before = PICKED.set(found)
    try:
        yield found
    finally:
        PICKED.reset(before)


class _TopWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes how many of the keys of `tokens` are picked."""

    def __init__(self, tokens: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tokens, self.counts = tokens, list[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.topk.default and args[0].shape[-1] == self.tokens:
            self.counts.append(int(args[1]))
        return func(*args, **(kwargs or {}))


def most_picked(call: nn.Module, device: torch.device, how: list[str], max_positions: int | None = None) -> int | None:
    """Up to how many keys a model looks at all, whose attention layers may be told which to look at; None if none is.

    Found by a run on fake tensors of FAR tokens, or, if that fails, of as many as it has positions, of whose keys the
    model takes the best.
    Raises Refusal(UNKNOWN_OPTION) if both fail, or if none are taken although indices tell some layer.
    """
    counts = _counts(call, device, FAR)
    if counts is None and max_positions is not None:
        counts = _counts(call, device, max_positions)
    if counts is None or (not counts and "indices" in how):
        raise Refusal(
            "UNKNOWN_OPTION",
            "attention is told which keys to look at, and it is not found up to how many it looks at all",
            fix="Please report the model.",
        )
    return min(counts, default=None)


def _counts(call: nn.Module, device: torch.device, length: int) -> list[int] | None:
    """How many of the keys of `length` tokens are picked, each time; None if the model cannot be run on so many."""
    tokens, watch = torch.zeros(1, length, dtype=torch.int64, device=device), _TopWatch(length)
    try:
        fake_run(call, tokens, torch.arange(length, device=device)[None], watch)
    except Exception:  # the model's own code, which may raise anything
        return None
    return watch.counts
