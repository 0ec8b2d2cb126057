"""A sleep chooses, for every KV head, among the pairs that it keeps and those of the window.

All S + Hkv L candidates stand in one row, older ones first: a sort by head and standing puts the best of each head at
the front of its part, and of equals the older one. Which places those are depends on budgets alone. A second sort,
by head and whether a candidate is one of the best, leaves both the best and the others in order of position.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import fx

from sleepc.ir.roles import NOTHING, PINNED_SCORE
from sleepc.ir.states import StateSpec, with_role
from sleepc.passes.consolidation.block_sleep import BlockSleep, Leaving
from sleepc.passes.keep.contract import STEP, Score, WindowPairs
from sleepc.passes.keep.drop import Parts, drop
from sleepc.passes.keep.places import best_places, in_order, owners, rows_at, slot_ends, standing
from sleepc.passes.lib.emit import Emit, aten
from sleepc.passes.rewrite.kept_pairs import (
    RECORD,
    head_port,
    probe_port,
    read_slots,
    slot_form,
    slot_specs,
    write_slots_of,
)
from sleepc.passes.rewrite.turn_keys import turn

MOST = 2.0**29  # greater scores count as this much


@dataclass(frozen=True)
class Choice:
    """`new`: values of a block's kept pairs after the sleep, by the names of their states. `dropped`: what its memory
    writes of the pairs that are not kept, None if it does not wait for them (drop.py).
    """

    new: dict[str, fx.Node]
    dropped: Parts | None


def choose(block: BlockSleep, made: Callable[[BlockSleep], Leaving], most: int) -> Choice:
    """What a block with kept pairs keeps and drops of those that it has and of what is leaving, as `made` says; `most`:
    the largest number of slots of a head.
    """
    specs, form = slot_specs(block.cls.states), slot_form(block.cls.states)
    e, head = block.e, head_port(block.e.graph)
    leaving = made(block)
    among = _candidates(e, block, specs, leaving)
    order = _best_first(e, block.kv_heads, leaving.count, among["score"], head)
    chosen = e.call(aten.index_select.default, order, 1, best_places(e, head, leaving.count))
    taken = {part: rows_at(e, values, chosen, specs[part].dims[2:]) for part, values in among.items()}
    wanted = e.call(aten.gt.Scalar, taken["score"], NOTHING / 2)
    # Of pairs that may not be kept the older ones are taken: empty slots, if none was just evicted.
    old = e.where(wanted, taken["position"], -1) if block.evicts else taken["position"]
    taken["position"] = _renumbered(e, block, old, head, most)
    if block.cls.turn is not None:
        kept, place = e.call(aten.lt.Scalar, chosen, e.size(head, 0)), taken["position"]
        by = e.where(kept, e.sub(place, old), place)
        by = e.where(wanted, by, 0) if block.evicts else by
        still = e.call(aten.logical_and.default, kept, e.call(aten.eq.Scalar, by, 0))
        start = taken["k"]
        if "plain" in specs:
            start, by = taken["plain"], e.where(wanted, place, 0)
        moved = e.call(aten.squeeze.dim, turn(e, block.cls.turn, e.unsqueeze(start, 1), by), 1)
        taken["k"] = e.where(e.unsqueeze(still, -1), taken["k"], e.cast(moved, specs["k"].dtype))
    new: Parts = {}
    for part, spec in specs.items():
        values, vectors = taken[part], len(spec.dims) > 2
        if block.evicts or part == "score":
            values = e.where(e.unsqueeze(wanted, -1) if vectors else wanted, values, spec.initial)
        new |= write_slots_of(e, spec, values, form)
    emptied = most if block.resets else 0
    return Choice(new, drop(block, among, order, emptied))


def leaving_window(block: BlockSleep, score: Score) -> Leaving:
    """The L pairs of the window that ends. What may not be kept is sinks, and what is not to be seen any more."""
    e, states = block.e, block.cls.states
    specs, heads = slot_specs(states), block.kv_heads
    k, v, position = block.of_window("k"), block.of_window("v"), block.positions()
    there, dtype = _not(e, block.gaps()), specs["score"].dtype
    read = e.call(aten.logical_and.default, e.call(aten.ge.Scalar, position, 0), there)
    probe = probe_port(e.graph, states, dtype) if score.probed else None
    wide = WindowPairs(e.cast(k, dtype), e.cast(v, dtype), position, read, heads, probe)
    scores = e.mul(e.call(aten.round.default, e.mul(score.emit(e, wide), 1 / STEP)), STEP)
    place = block.model_positions()
    scores = e.where(e.unsqueeze(_not(e, block.pinned()), 1), scores, PINNED_SCORE)
    may = e.call(aten.logical_and.default, e.call(aten.ge.Scalar, place, block.sinks), there)
    scores = e.where(e.unsqueeze(may, 1), scores, NOTHING)
    recorded = {f"{RECORD}{s.part}": block.states[s.name] for s in with_role(states, "record")}
    return Leaving(k, v, place, position, scores, block.window, recorded)


def _candidates(e: Emit, block: BlockSleep, specs: dict[str, StateSpec], leaving: Leaving) -> Parts:
    """The S kept pairs of all heads, and then the n that are leaving of every head, part by part [B,M,..]: k (kept ones
    as attention sees them, the others before positions), positions as the model counts, numbers of tokens in their
    stream, scores. What may not be kept has the score NOTHING: also all in rows that this sleep evicts hard.
    """
    heads, form, count = block.kv_heads, slot_form(block.cls.states), leaving.count
    place, token = (
        e.call(aten.expand.default, e.unsqueeze(each, 1), [-1, heads, -1]) for each in (leaving.place, leaving.token)
    )
    held = read_slots(e, block.cls.states, block.states)
    filled = e.call(aten.ge.Scalar, held["position"], 0)
    held["score"] = e.where(filled, held["score"], NOTHING)
    window = {"k": leaving.k, "plain": leaving.k, "v": leaving.v, "position": place, "token": token}
    window |= {"score": leaving.score, **leaving.more}
    among = {}
    for part, spec in specs.items():
        own = window[part]
        if form is not None and spec.dims[2:]:
            own = e.cast(own, spec.dtype)  # what slots hold is read wider
        flat = e.reshape(own, [-1, heads * count, *spec.dims[2:]])
        among[part] = e.call(aten.cat.default, [held[part], flat], 1)
    if block.evicts:
        among["score"] = e.where(e.unsqueeze(block.ring_stays(), 1), among["score"], NOTHING)
    return among


def _best_first(e: Emit, heads: int, count: int, score: fx.Node, head: fx.Node) -> fx.Node:
    """The numbers of all candidates [B,M], head by head, those of each with the best scores [B,M] first; these and the
    others in order of position. Each of the heads has `count` more than slots.
    """
    owner = e.call(aten.cat.default, [head, owners(e, heads, count)])
    capped = e.call(aten.clamp.default, score, -MOST, MOST)
    capped = e.where(e.call(aten.gt.Scalar, score, NOTHING / 2), capped, -2 * MOST)
    by_score = in_order(e, e.add(standing(e, capped), e.mul(owner, e.size(score, 1))))
    best = e.call(aten.index_select.default, by_score, 1, best_places(e, head, count))
    parts = e.call(aten.expand_as.default, e.unsqueeze(e.call(aten.add.Scalar, e.mul(owner, 2), 1), 0), by_score)
    first = e.call(aten.expand_as.default, e.unsqueeze(e.mul(head, 2), 0), best)
    return in_order(e, e.call(aten.scatter.src, parts, 1, best, first))


def _renumbered(e: Emit, block: BlockSleep, old: fx.Node, head: fx.Node, most: int) -> fx.Node:
    """Positions [B,S] after the sleep. If it renumbers, pairs that the ring holds move with it, and the others stand
    one after the other between the sinks and the ring.
    """
    moved, start = block.moved(), block.ring_start()
    if moved is None:
        return old
    moved, start = e.unsqueeze(moved, 1), e.unsqueeze(start, 1)
    ends = slot_ends(e, head, block.kv_heads)
    slot = e.call(aten.arange.default, e.size(head, 0))
    last = e.sub(slot, e.call(aten.index_select.default, ends, 0, head))  # -1 in a head's last slot
    compact = e.unsqueeze(e.call(aten.add.Scalar, last, block.sinks + most), 0)
    new = e.where(e.call(aten.ge.Tensor, old, start), e.sub(old, moved), compact)
    moves = e.call(aten.logical_and.default, e.call(aten.gt.Scalar, moved, 0), e.call(aten.ge.Scalar, old, 0))
    return e.where(moves, new, old)


def _not(e: Emit, x: fx.Node) -> fx.Node:
    return e.call(aten.logical_not.default, x)
