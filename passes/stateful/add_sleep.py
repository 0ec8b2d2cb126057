"""The sleep hooks: what a sleep does to the counters (clock) and to the state of each block class (its sleep graph)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, get_args

import torch
from torch import fx

from sleepc.errors import SleepcError
from sleepc.ir.graph import Graph
from sleepc.ir.infer import infer_types
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.roles import AtSleep, at_sleep
from sleepc.ir.states import StateSpec, with_role
from sleepc.passes.base import Effect, Pass
from sleepc.passes.consolidation.block_sleep import (
    MODEL_POSITION,
    MODEL_POSITIONS,
    MOVED,
    WINDOW_PINNED,
    WINDOW_POSITIONS,
    BlockSleep,
    Leaving,
    gaps_name,
    kv_length,
    stays_name,
)
from sleepc.passes.consolidation.registry import find as find_consolidation
from sleepc.passes.facts import AWAKE, BLOCKS, BOUNDED, CLOCKED, Fact
from sleepc.passes.keep.choose import choose, leaving_window
from sleepc.passes.keep.registry import find as find_score
from sleepc.passes.lib.emit import Emit, aten
from sleepc.passes.plan import Groups
from sleepc.passes.rewrite.bound_attention import CLOCK, OFFSET, POSITION, SLEPT, slots_name
from sleepc.passes.rewrite.kept_pairs import add_probes, most_slots
from sleepc.recipe import Eviction


@dataclass(frozen=True)
class AddSleep(Pass):
    """Consolidation of the window's record, and eviction (semantics.md, section 4).

    clock: (position, since, slept) -> new counters; for each length W of a KV window the slots [B,L] of the tokens
    since the last sleep, and which slots [B,sinks+W] stay; if a block asks, the positions of these tokens. Hard
    eviction keeps the sinks; sliding keeps all, unless the next window would pass the last position: then, if the
    program has an offset, it grows so that the oldest key that is kept comes right after the sinks, and else this sleep
    evicts hard. Sleeps need `ahead` positions behind the window's.
    blocks: the consolidation says what becomes of memories; the pairs that `score` is greatest for are kept, in layers
    that keep pairs; records are emptied, evicted slots are zeroed. Windows that no sleep evicts stay as they are.
    """

    window: int
    sinks: int
    eviction: Eviction
    consolidation: str
    groups: Groups
    score: str = ""
    ahead: int = 0
    name: ClassVar[str] = "add-sleep"
    effect: ClassVar[Effect] = "APPROXIMATE"
    requires: ClassVar[tuple[Fact, ...]] = (BLOCKS, BOUNDED, CLOCKED, AWAKE)

    def run(self, program: ProgramGraphs) -> int:
        """The number of graphs added."""
        options = {i: group.options for group in self.groups for i in group.layers}
        of_class = {block.cls: options.get(i) for i, block in enumerate(program.layout)}
        program.window = self.window
        renumbers, most = OFFSET in program.states, most_slots(program)
        resets = not renumbers and program.max_positions is not None
        for name, cls in program.classes.items():
            graph = Graph(f"{name}.sleep")
            states = {s.name: graph.add_port("state", s.name, s.type()) for s in cls.states}
            graph.set_returns(dict(list(states.items())[:1]))
            e = Emit(graph, "sleep")
            evicts = resets or self.eviction == "hard"
            of_window = self.window, self.sinks, renumbers, resets, evicts
            block = BlockSleep(e, cls, states, of_class[name], *of_window, soft=self.ahead)
            self._sleep(block, most)
            cls.sleep, cls.turn = graph, None
            add_probes(program, name)
        program.clock = self._clock(program, most)
        return 1 + len(program.classes)

    def _clock(self, program: ProgramGraphs, most: int) -> Graph:
        graph = Graph("clock")
        for spec in program.states:
            if at_sleep(spec.role) not in ("counted", "emptied", "evicted"):
                raise SleepcError(f"only blocks hold states of role {spec.role!r}", where=f"state {spec.name}")
        ports = {s.name: graph.add_port("state", s.name, s.type()) for s in program.states}
        position, since, slept = (ports[s.name] for s in CLOCK)
        graph.set_returns({"slept": slept})
        e = Emit(graph, "clock")
        steps = e.unsqueeze(e.call(aten.arange.default, self.window), 0)
        held = e.call(aten.lt.Tensor, steps, e.unsqueeze(since, 1))
        tokens = e.where(held, e.add(e.unsqueeze(e.sub(position, since), 1), steps), 0)
        late = self._late(e, position, ports.get(OFFSET.name), program.max_positions)
        hard = self._hard(e, position, late, OFFSET.name in ports)
        results: dict[str, fx.Node] = {}
        for window in sorted({w for cls in program.classes.values() if (w := kv_length(cls, self.sinks))}):
            results[slots_name(window)] = e.ours("window_slots", tokens, window=window, sinks=self.sinks)
            places = e.unsqueeze(e.call(aten.arange.default, window + self.sinks), 0)
            sink = e.call(aten.lt.Scalar, places, self.sinks)
            keep = e.call(aten.logical_or.default, e.unsqueeze(e.call(aten.logical_not.default, hard), 1), sink)
            results[stays_name(window)] = keep
        restarted = e.call(aten.clamp.default, position, None, self.sinks)
        results |= {name: e.call(aten.zeros_like.default, node) for name, node in ports.items()}
        results |= _marks(program, e, ports, tokens, results)
        results[POSITION.name] = e.where(hard, restarted, position)
        results[SLEPT.name] = e.call(aten.ones_like.default, slept)
        if OFFSET.name in ports:
            longest = max(kv_length(cls, self.sinks) for cls in program.classes.values())
            oldest = e.call(aten.sub.Scalar, position, self.sinks + most + longest)
            results[OFFSET.name] = e.where(late, oldest, ports[OFFSET.name])
        results |= self._asked(program, e, ports, e.where(held, tokens, -1), results)
        graph.set_returns(results)
        graph.drop_dead()
        infer_types(graph)
        return graph

    def _asked(
        self,
        program: ProgramGraphs,
        e: Emit,
        ports: dict[str, fx.Node],
        tokens: fx.Node,
        results: dict[str, fx.Node],
    ) -> dict[str, fx.Node]:
        """What sleep graphs ask of positions; `tokens` [B,L] are those of the window, `results` the new counters."""
        asked = {name for cls in program.classes.values() if cls.sleep for name in cls.sleep.ports("input")}
        offset, position = ports.get(OFFSET.name), ports[POSITION.name]
        found = {WINDOW_POSITIONS: tokens, MODEL_POSITIONS: tokens, MODEL_POSITION: position}
        if offset is not None:
            read = e.call(aten.ge.Scalar, tokens, 0)
            found[MODEL_POSITIONS] = e.where(read, e.sub(tokens, e.unsqueeze(offset, 1)), -1)
            found[MODEL_POSITION] = e.sub(position, offset)
            found[MOVED] = e.sub(results[OFFSET.name], offset)
        return {name: node for name, node in found.items() if name in asked}

    def _late(self, e: Emit, position: fx.Node, offset: fx.Node | None, max_positions: int | None) -> fx.Node:
        """For which rows the next window would pass the model's last position: bool [B]."""
        limit = torch.iinfo(torch.int64).max if max_positions is None else max_positions - self.window - self.ahead
        return e.call(aten.gt.Scalar, position if offset is None else e.sub(position, offset), limit)

    def _hard(self, e: Emit, position: fx.Node, late: fx.Node, renumbers: bool) -> fx.Node:
        """Which rows this sleep evicts hard: bool [B]."""
        if self.eviction == "hard":
            return e.call(aten.ge.Scalar, position, 0)
        return e.call(aten.lt.Scalar, position, 0) if renumbers else late

    def _sleep(self, block: BlockSleep, most: int) -> None:
        """Write the sleep graph of a block class."""
        e, graph, states = block.e, block.e.graph, block.cls.states
        of = {what: [s for s in states if at_sleep(s.role) == what] for what in get_args(AtSleep)}
        if of["counted"]:
            what = f"a block has a counter of rows, {of['counted'][0].name}: only the clock counts"
            raise SleepcError(what, where=graph.name)
        kept, consolidation = dict[str, fx.Node](), find_consolidation(self.consolidation)
        if of["chosen"]:
            choice = choose(block, self._leaving, most)
            kept, block = choice.new, replace(block, dropped=choice.dropped)
        results = consolidation.sleep(block) | kept
        held = block.states
        for spec in of["evicted"] if block.evicts else []:
            results[spec.name] = e.where(e.unsqueeze(block.stays(), 1, -1), held[spec.name], 0.0)
        results |= {s.name: self._empty(e, s, held[s.name]) for s in of["emptied"]}
        graph.set_returns(results)
        graph.drop_dead()
        infer_types(graph)

    def _leaving(self, block: BlockSleep) -> Leaving:
        """What slots may get: what the consolidation says, or pairs of the window."""
        made = find_consolidation(self.consolidation).leaving(block)
        return made or leaving_window(block, find_score(self.score))

    def _empty(self, e: Emit, spec: StateSpec, state: fx.Node) -> fx.Node:
        """As it was at first."""
        zero = e.call(aten.zeros_like.default, state)
        return e.add(zero, spec.initial) if spec.initial else zero


def _marks(
    program: ProgramGraphs, e: Emit, ports: dict[str, fx.Node], tokens: fx.Node, results: dict[str, fx.Node]
) -> dict[str, fx.Node]:
    """What sleep graphs may ask of marks (passes/rewrite/marks.py), and gaps after the sleep; `tokens` [B,L] are those
    of the window.
    """
    found: dict[str, fx.Node] = {}
    for spec in with_role(program.states, "pin"):
        found[WINDOW_PINNED] = e.call(aten.clone.default, ports[spec.name])
    for spec in with_role(program.states, "gap"):
        gaps, length = ports[spec.name], int(spec.part)
        marked = e.call(aten.gather.default, gaps, 1, results[slots_name(length)])
        found[gaps_name(length)] = e.call(aten.eq.Tensor, marked, tokens)
        found[spec.name] = e.where(results[stays_name(length)], gaps, -1)
    return found
