"""A sleep chooses, for every KV head, among the pairs that it keeps and those of the window.

All S + Hkv L candidates stand in one row, older ones first: a stable sort by score and one by head put the best of each
head at the front of its part, and of equals the older one. Which places those are depends on budgets alone.
"""

from __future__ import annotations

import operator as python
from dataclasses import dataclass

from torch import fx

from sleepc.ir.graph import Graph
from sleepc.ir.states import StateSpec, with_role
from sleepc.passes.consolidation.block_sleep import BlockSleep
from sleepc.passes.keep.contract import NOTHING, STEP, Score, WindowPairs
from sleepc.passes.lib.emit import Emit, aten
from sleepc.passes.rewrite.kept_pairs import head_port
from sleepc.passes.rewrite.turn_keys import turn


@dataclass(frozen=True)
class Candidates:
    """The S kept pairs of all heads, and then the L of the window of every head: k [B,M,d_k] (kept ones as attention
    sees them, the others before positions), v [B,M,d_v], positions as the model counts [B,M], and scores [B,M].
    """

    k: fx.Node
    v: fx.Node
    position: fx.Node
    score: fx.Node


def choose(block: BlockSleep, score: Score, turned: Graph | None, most: int) -> dict[str, fx.Node]:
    """New values of a block's kept pairs. `turned` is the graph that puts keys at positions (turn_keys.py), None if the
    model does not; `most`: the largest number of slots of a head. Nothing for a block that keeps none.
    """
    specs = {s.part: s for s in with_role(block.cls.states, "kept")}
    if not specs:
        return {}
    e, head = block.e, head_port(block.e.graph)
    among = _candidates(e, block, specs, score)
    chosen = _best(e, block, among, head)

    def taken(values: fx.Node) -> fx.Node:
        return e.call(aten.gather.default, values, 1, chosen)

    def rows(values: fx.Node, width: int | str) -> fx.Node:
        index = e.call(aten.expand.default, e.unsqueeze(chosen, -1), [-1, -1, width])
        return e.call(aten.gather.default, values, 1, index)

    wanted = e.call(aten.gt.Scalar, taken(among.score), NOTHING / 2)
    old = e.where(wanted, taken(among.position), -1)
    k = rows(among.k, specs["k"].dims[2])
    new = _renumbered(e, block, old, head, most)
    if turned is not None:
        kept = e.call(aten.lt.Scalar, chosen, e.size(head, 0))
        by = e.where(wanted, e.where(kept, e.sub(new, old), new), 0)
        still = e.call(aten.logical_and.default, kept, e.call(aten.eq.Scalar, by, 0))
        moved = e.call(aten.squeeze.dim, turn(e, turned, e.unsqueeze(k, 1), by), 1)
        k = e.where(e.unsqueeze(still, -1), k, e.cast(moved, specs["k"].dtype))
    filled = e.unsqueeze(wanted, -1)
    return {
        specs["k"].name: e.where(filled, k, 0.0),
        specs["v"].name: e.where(filled, rows(among.v, specs["v"].dims[2]), 0.0),
        specs["position"].name: new,
        specs["score"].name: e.where(wanted, taken(among.score), 0.0),
    }


def _candidates(e: Emit, block: BlockSleep, specs: dict[str, StateSpec], score: Score) -> Candidates:
    """What may be kept: not sinks, and nothing in rows that this sleep evicts hard."""
    k, v, position = block.of_window("k"), block.of_window("v"), block.positions()
    heads = block.kv_heads
    read, dtype = e.call(aten.ge.Scalar, position, 0), specs["score"].dtype
    wide = WindowPairs(e.cast(k, dtype), e.cast(v, dtype), position, read, heads)
    scores = e.mul(e.call(aten.round.default, e.mul(score.emit(e, wide), 1 / STEP)), STEP)
    place = block.model_positions()
    scores = e.where(e.unsqueeze(e.call(aten.ge.Scalar, place, block.sinks), 1), scores, NOTHING)
    flat = [-1, heads * block.window]
    place = e.call(aten.expand.default, e.unsqueeze(place, 1), [-1, heads, -1])
    held = {part: block.states[spec.name] for part, spec in specs.items()}

    def both(part: str, of_window: fx.Node, *width: int | str) -> fx.Node:
        return e.call(aten.cat.default, [held[part], e.reshape(of_window, [*flat, *width])], 1)

    filled = e.call(aten.ge.Scalar, held["position"], 0)
    held["score"] = e.where(filled, held["score"], NOTHING)
    stays = e.call(aten.select.int, block.stays(), 1, block.sinks)  # the ring's first slot: all of it, or nothing
    return Candidates(
        both("k", k, specs["k"].dims[2]),
        both("v", v, specs["v"].dims[2]),
        both("position", place),
        e.where(e.unsqueeze(stays, 1), both("score", scores), NOTHING),
    )


def _best(e: Emit, block: BlockSleep, among: Candidates, head: fx.Node) -> fx.Node:
    """For every slot the number of the candidate that is to stand in it, [B,S]: each head's best, in order of
    position, those that are not to be kept first.
    """
    heads, window, count = block.kv_heads, block.window, e.size(among.score, 1)
    each = e.unsqueeze(e.call(aten.arange.default, heads), 1)
    of_window = e.reshape(e.call(aten.expand.default, each, [heads, window]), [heads * window])
    owner = e.call(aten.expand_as.default, e.unsqueeze(e.call(aten.cat.default, [head, of_window]), 0), among.score)
    by_score = _order(e, among.score, descending=True)
    by_head = _order(e, e.call(aten.gather.default, owner, 1, by_score))
    order = e.call(aten.gather.default, by_score, 1, by_head)
    # Head h has L candidates more than slots: the best stand L h places further on than its slots do.
    best = e.add(e.call(aten.arange.default, e.size(head, 0)), e.mul(head, window))
    chosen = e.call(aten.index_select.default, order, 1, best)
    wanted = e.call(aten.gt.Scalar, e.call(aten.gather.default, among.score, 1, chosen), NOTHING / 2)
    place = e.where(wanted, e.call(aten.add.Scalar, chosen, 1), 0)
    parts = e.mul(head, e.call(python.add, count, 1))
    return e.call(aten.gather.default, chosen, 1, _order(e, e.add(place, parts)))


def _order(e: Emit, values: fx.Node, *, descending: bool = False) -> fx.Node:
    """The places of values [B,M] in order; of equals the first one comes first."""
    return e.item(e.call(aten.sort.stable, values, stable=True, dim=1, descending=descending), 1)


def _renumbered(e: Emit, block: BlockSleep, old: fx.Node, head: fx.Node, most: int) -> fx.Node:
    """Positions [B,S] after the sleep. If it renumbers, pairs that the ring holds move with it, and the others stand
    one after the other between the sinks and the ring.
    """
    moved, start = block.moved(), block.ring_start()
    if moved is None:
        return old
    moved, start = e.unsqueeze(moved, 1), e.unsqueeze(start, 1)
    before = e.call(aten.le.Tensor, e.unsqueeze(head, 0), e.unsqueeze(e.call(aten.arange.default, block.kv_heads), 1))
    ends = e.call(aten.sum.dim_IntList, before, [1])  # the slots of each head and of those before it
    slot = e.call(aten.arange.default, e.size(head, 0))
    last = e.sub(slot, e.call(aten.index_select.default, ends, 0, head))  # -1 in a head's last slot
    compact = e.unsqueeze(e.call(aten.add.Scalar, last, block.sinks + most), 0)
    new = e.where(e.call(aten.ge.Tensor, old, start), e.sub(old, moved), compact)
    moves = e.call(aten.logical_and.default, e.call(aten.gt.Scalar, moved, 0), e.call(aten.ge.Scalar, old, 0))
    return e.where(moves, new, old)
