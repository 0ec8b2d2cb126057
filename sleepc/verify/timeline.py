"""When a stream sleeps, and what that makes of positions and of who sees whom: semantics.md, section 4, by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from sleepc.masks import Mask
from sleepc.recipe import Recipe


@dataclass(frozen=True)
class Timeline:
    """Of every token of a stream of T: its position, how many hard evictions and sleeps came before it, and how much
    less the model is told than its position (offset), int64 [T].

    `cuts`: the numbers of tokens after which the stream sleeps. `next_position`: that of the token to come.
    """

    position: Tensor
    epoch: Tensor
    slept: Tensor
    offset: Tensor
    cuts: tuple[int, ...]
    next_position: int
    next_epoch: int
    next_offset: int

    def windows(self) -> list[tuple[int, int]]:
        """First token and end of every stretch between sleeps; the last one may not have slept yet."""
        length = len(self.position)
        edges = sorted({0, *self.cuts, length})
        return [(a, b) for a, b in pairwise(edges) if a < b]


def make_timeline(
    length: int,
    recipe: Recipe,
    max_positions: int | None,
    cuts: Sequence[int] | None = None,
    longest: int = 0,
    *,
    renumbers: bool = False,
) -> Timeline:
    """The timeline of `length` tokens; without `cuts`, a sleep comes after every window of tokens. A program that
    `renumbers` counts the next token, after the sleep at its last position, right after the sinks and `longest` tokens:
    those of the longest window and, before them, the most pairs that a head keeps.

    Raises ValueError for cuts that are further apart than the window.
    """
    at = set(range(recipe.window, length + 1, recipe.window) if cuts is None else cuts)
    edges = [0, *sorted(at), length]
    if any(b - a > recipe.window for a, b in pairwise(edges)):
        raise ValueError(f"sleeps after {sorted(at)} of {length} tokens leave more than {recipe.window} tokens awake")
    limit = max_positions if max_positions is not None else torch.iinfo(torch.int64).max
    rows: list[tuple[int, int, int, int]] = []
    position = epoch = slept = offset = 0
    for token in range(length):
        rows.append((position, epoch, slept, offset))
        position += 1
        if token + 1 in at:
            slept += 1
            late = position - offset + recipe.window > limit
            if recipe.eviction == "hard" or (late and not renumbers):
                position, epoch = min(position, recipe.sinks), epoch + 1
            elif late:  # the oldest key that is kept comes right after the sinks
                offset = position - longest - recipe.sinks
    at_token = torch.tensor(rows, dtype=torch.int64).reshape(length, 4).unbind(1)
    return Timeline(at_token[0], at_token[1], at_token[2], at_token[3], tuple(sorted(at)), position, epoch, offset)


def sees(time: Timeline, sinks: int, window: int, mask: Mask, *, brought: bool = False) -> Tensor:
    """Which token (row) sees which (column) in a layer that keeps `window` tokens: bool [T,T].

    Seen are the sinks (the first tokens of the stream) and what has not been evicted of the latest tokens. A layer
    with a window of its own (of `mask`) sees what is nearer than that, by position, and sinks not beyond it, unless
    they are `brought` near; whatever else its mask says holds for positions, by the references of sleepc/masks.
    """
    own, other = mask.window, mask.without_window()
    token = torch.arange(len(time.position))
    past = token[None] <= token[:, None]
    together = time.epoch[None] == time.epoch[:, None]
    distance = time.position[:, None] - time.position[None]
    near = together & (token[:, None] - token[None] < (min(own, window) if own else window))
    sink = (token < sinks)[None].expand_as(past)
    if own and not brought:
        sink = sink & (distance < own)
    if other.parts:
        past = past & _allowed(other, int(time.position.max()) + 1)[time.position[:, None], time.position[None]]
    return past & (near | sink)


@cache
def _allowed(mask: Mask, positions: int) -> Tensor:
    """What a mask lets each position (row) see of each (column), pair by pair: bool [positions, positions]."""
    return torch.tensor([[mask.naive(i, j) for j in range(positions)] for i in range(positions)])


def sees_kept(time: Timeline, kept: Tensor, window: int, start: int, end: int) -> Tensor:
    """Which of the tokens start .. end-1 sees which of the pairs `kept` [B,Hkv,S] (of tokens, -1 for none), in a layer
    that keeps `window` tokens: bool [B,Hkv,end-start,S]. Seen is what has left the window.
    """
    passed = time.position[start:end, None] - time.position[kept.clamp(min=0)][:, :, None]
    return (kept >= 0)[:, :, None] & (passed >= window)


def key_positions(time: Timeline, start: int, sinks: int, window: int, own: int, every: int) -> Tensor:
    """Where tokens 0 .. start-1 stand for those from `start` to the next sleep, as the model counts: int64 [start].

    With a window of its own (`own`, 0 for none) a layer sees the sinks just before what it kept at the last sleep, and
    at most as far away as its own window reaches from the last of `every` tokens until the next sleep.
    """
    now, offset = int(time.position[start]), int(time.offset[start])
    places = time.position[:start] - offset
    shift = max(now - offset - min(window + sinks, own - every), 0) if own else 0
    first = torch.arange(min(sinks, start))
    return torch.cat([first + shift, places[len(first) :]])


def held_tokens(time: Timeline, sinks: int, window: int) -> Tensor:
    """The token that every slot of a KV window holds at the end of the stream, -1 for none: int64 [sinks + window]."""
    held = torch.full((sinks + window,), -1, dtype=torch.int64)
    for token, (position, epoch) in enumerate(zip(time.position.tolist(), time.epoch.tolist(), strict=True)):
        if position < sinks:
            held[position] = token
        elif epoch == time.next_epoch:
            held[sinks + (position - sinks) % window] = token
    return held
