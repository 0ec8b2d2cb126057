"""A sleep chooses among the pairs that are kept and those of its window."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import fx

from sleepc.ir.states import with_role
from sleepc.passes.consolidation.block_sleep import BlockSleep
from sleepc.passes.lib.emit import Emit, aten


@dataclass(frozen=True)
class Candidates:
    """S kept pairs of every KV head, and then the L of the window: keys [B,Hkv,S+L,d_k], values [B,Hkv,S+L,d_v],
    positions [B,Hkv,S+L], -1 where there is no pair to keep: in empty slots, of sinks, and in rows that this sleep
    evicts hard.
    """

    k: fx.Node
    v: fx.Node
    position: fx.Node
    heads: int


def keep_best(block: BlockSleep, score: Callable[[Emit, Candidates], fx.Node]) -> dict[str, fx.Node]:
    """New values of a block's kept pairs: the best by `score`, numbers [B,Hkv,S+L], less than 0 for what is not to be
    kept; in order of their positions, empty slots first, with zeros in them. Nothing for a block that keeps none.
    """
    states = {s.part: s for s in with_role(block.cls.states, "kept")}
    if not states:
        return {}
    e, slots = block.e, int(states["position"].dims[2])
    among = candidates(block)
    real = e.call(aten.ge.Scalar, among.position, 0)
    best = e.call(aten.topk.default, e.where(real, score(e, among), -1), slots, -1)
    wanted = e.call(aten.ge.Scalar, e.item(best, 0), 0)
    found = e.where(wanted, e.call(aten.gather.default, among.position, 2, e.item(best, 1)), -1)
    by_position = e.call(aten.sort.default, found, -1)
    place = e.call(aten.gather.default, e.item(best, 1), 2, e.item(by_position, 1))
    filled = e.unsqueeze(e.call(aten.ge.Scalar, e.item(by_position, 0), 0), -1)

    def taken(part: str, values: fx.Node) -> fx.Node:
        index = e.call(aten.expand.default, e.unsqueeze(place, -1), [-1, -1, -1, states[part].dims[3]])
        return e.where(filled, e.call(aten.gather.default, values, 2, index), 0.0)

    new = {"k": taken("k", among.k), "v": taken("v", among.v), "position": e.item(by_position, 0)}
    return {states[part].name: value for part, value in new.items()}


def candidates(block: BlockSleep) -> Candidates:
    """What a block that keeps pairs may choose from."""
    e, kept = block.e, {s.part: s for s in with_role(block.cls.states, "kept")}
    heads = int(kept["position"].dims[1])

    def both(part: str, of_window: fx.Node) -> fx.Node:
        return e.call(aten.cat.default, [block.states[kept[part].name], of_window], 2)

    k, v = both("k", block.of_window("k")), both("v", block.of_window("v"))
    position = both("position", e.call(aten.expand.default, e.unsqueeze(block.positions(), 1), [-1, heads, -1]))
    position = e.where(e.call(aten.ge.Scalar, position, block.sinks), position, -1)
    stays = e.call(aten.select.int, block.stays(), 1, block.sinks)  # the ring's first slot: all of it, or nothing
    return Candidates(k, v, e.where(e.unsqueeze(stays, -1, -1), position, -1), heads)
