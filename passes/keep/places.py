"""Places among the candidates of a sleep: the S slots of all KV heads one after the other, and then the L tokens of the
window of every head.
"""

from __future__ import annotations

import torch
from torch import fx

from sleepc.passes.lib.emit import Emit, aten


def slot_ends(e: Emit, head: fx.Node, heads: int) -> fx.Node:
    """How many slots each head and those before it have, [Hkv]; `head` [S] says whose each slot is."""
    before = e.call(aten.le.Tensor, e.unsqueeze(head, 0), e.unsqueeze(e.call(aten.arange.default, heads), 1))
    return e.call(aten.sum.dim_IntList, before, [1])


def owners(e: Emit, heads: int, places: int) -> fx.Node:
    """The KV head of each place [Hkv n] where every head has n `places`, as it has in the window."""
    each = e.unsqueeze(e.call(aten.arange.default, heads), 1)
    return e.reshape(e.call(aten.expand.default, each, [heads, places]), [heads * places])


def best_places(e: Emit, head: fx.Node, window: int) -> fx.Node:
    """Where each head's best stand [S] if all candidates are ordered head by head: a head has L candidates more than
    slots, so those of head h stand L h places further on than its slots do.
    """
    return e.add(e.call(aten.arange.default, e.size(head, 0)), e.mul(head, window))


def other_places(e: Emit, head: fx.Node, heads: int, window: int) -> fx.Node:
    """Where the others stand [Hkv L], head by head."""
    first = e.add(slot_ends(e, head, heads), e.mul(e.call(aten.arange.default, heads), window))
    places = e.add(e.unsqueeze(first, 1), e.call(aten.arange.default, window))
    return e.reshape(places, [heads * window])


def in_order(e: Emit, values: fx.Node) -> fx.Node:
    """The places of whole numbers [B,M] in order, of equals the first one first, also where a sort mixes equals."""
    count = e.size(values, 1)
    distinct = e.add(e.mul(values, count), e.call(aten.arange.default, count))
    return e.item(e.call(aten.sort.stable, distinct, stable=True, dim=1), 1)


def standing(e: Emit, scores: fx.Node) -> fx.Node:
    """How many different scores are better than each of [B,M]. Whole numbers that fit 32 bits, which not all runtimes
    go beyond, and equals are equal in whatever order they were sorted.
    """
    ordered = e.call(aten.sort.stable, scores, stable=True, dim=1, descending=True)
    best, at = e.item(ordered, 0), e.item(ordered, 1)
    first, others = e.call(aten.slice.Tensor, best, 1, 0, 1), e.call(aten.slice.Tensor, best, 1, 0, -1)
    worse = e.call(aten.lt.Tensor, best, e.call(aten.cat.default, [first, others], 1))
    return e.call(aten.scatter.src, at, 1, at, e.call(aten.cumsum.default, e.cast(worse, torch.int64), 1))


def rows_at(e: Emit, values: fx.Node, index: fx.Node, width: tuple[int | str, ...]) -> fx.Node:
    """values [B,M,..] at index [B,N] -> [B,N,..]; `width` is (D,) of vectors and () of numbers."""
    if width:
        index = e.call(aten.expand.default, e.unsqueeze(index, -1), [-1, -1, *width])
    return e.call(aten.gather.default, values, 1, index)
