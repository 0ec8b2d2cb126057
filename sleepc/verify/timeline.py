"""When a stream sleeps, and what that makes of positions and of who sees whom: semantics.md, section 4, by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from sleepc.recipe import Recipe


@dataclass(frozen=True)
class Timeline:
    """Of every token of a stream of T: its position, and how many hard evictions and sleeps came before it, int64 [T].

    `cuts`: the numbers of tokens after which the stream sleeps. `next_position`: that of the token to come.
    """

    position: Tensor
    epoch: Tensor
    slept: Tensor
    cuts: tuple[int, ...]
    next_position: int
    next_epoch: int

    def windows(self) -> list[tuple[int, int]]:
        """First token and end of every stretch between sleeps; the last one may not have slept yet."""
        length = len(self.position)
        edges = sorted({0, *self.cuts, length})
        return [(a, b) for a, b in pairwise(edges) if a < b]


def make_timeline(
    length: int, recipe: Recipe, max_positions: int | None, cuts: Sequence[int] | None = None
) -> Timeline:
    """The timeline of `length` tokens; without `cuts`, a sleep comes after every window of tokens.

    Raises ValueError for cuts that are further apart than the window.
    """
    at = set(range(recipe.window, length + 1, recipe.window) if cuts is None else cuts)
    edges = [0, *sorted(at), length]
    if any(b - a > recipe.window for a, b in pairwise(edges)):
        raise ValueError(f"sleeps after {sorted(at)} of {length} tokens leave more than {recipe.window} tokens awake")
    limit = max_positions if max_positions is not None else torch.iinfo(torch.int64).max
    rows: list[tuple[int, int, int]] = []
    position = epoch = slept = 0
    for token in range(length):
        rows.append((position, epoch, slept))
        position += 1
        if token + 1 in at:
            slept += 1
            if recipe.eviction == "hard" or position + recipe.window > limit:
                position, epoch = min(position, recipe.sinks), epoch + 1
    columns = torch.tensor(rows, dtype=torch.int64).reshape(length, 3).unbind(1)
    return Timeline(columns[0], columns[1], columns[2], tuple(sorted(at)), position, epoch)


def sees(time: Timeline, sinks: int, window: int, own: int, chunk: int = 0) -> Tensor:
    """Which token (row) sees which (column) in a layer that keeps `window` tokens: bool [T,T].

    Seen are the sinks (the first tokens of the stream) and what has not been evicted of the latest tokens. A layer
    with a window of its own of up to as many sees what is nearer than that, by position, and sinks not beyond it; one
    with chunks sees nothing from another chunk, by position.
    """
    token = torch.arange(len(time.position))
    past = token[None] <= token[:, None]
    together = time.epoch[None] == time.epoch[:, None]
    distance = time.position[:, None] - time.position[None]
    narrow = 0 < own <= window
    near = together & (token[:, None] - token[None] < (own if narrow else window))
    sink = (token < sinks)[None].expand_as(past)
    if chunk:
        past = past & (time.position[:, None] // chunk == time.position[None] // chunk)
    return past & (near | (sink & (distance < own) if narrow else sink))


def held_tokens(time: Timeline, sinks: int, window: int) -> Tensor:
    """The token that every slot of a KV window holds at the end of the stream, -1 for none: int64 [sinks + window]."""
    held = torch.full((sinks + window,), -1, dtype=torch.int64)
    for token, (position, epoch) in enumerate(zip(time.position.tolist(), time.epoch.tolist(), strict=True)):
        if position < sinks:
            held[position] = token
        elif epoch == time.next_epoch:
            held[sinks + (position - sinks) % window] = token
    return held
