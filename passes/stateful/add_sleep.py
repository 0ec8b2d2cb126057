"""The sleep hooks: what a sleep does to the counters (clock) and to the state of each block class (its sleep graph)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import fx

from sleepc.ir.graph import Graph
from sleepc.ir.infer import infer_types
from sleepc.ir.program import BlockClass, ProgramGraphs
from sleepc.ir.types import TensorType
from sleepc.ops.rules import find as find_rule
from sleepc.passes.base import Effect, Pass
from sleepc.passes.lib.emit import Emit, aten
from sleepc.passes.plan import Groups, MemoryOptions
from sleepc.passes.rewrite.bound_attention import CLOCK, OFFSET, slots_name

Eviction = Literal["sliding", "hard"]
RECORDS = ("record.", "hidden")


@dataclass(frozen=True)
class AddSleep(Pass):
    """Consolidation of the window's record, and eviction (semantics.md, section 4).

    clock: (position, since, slept) -> new counters; for each length W of a KV window the slots [B,L] of the tokens
    since the last sleep, and which slots [B,sinks+W] stay. Hard eviction keeps the sinks; sliding keeps all, unless the
    next window would pass the last position: then, where the program has an offset, it grows so that the oldest key
    that is kept comes right after the sinks, and else this sleep evicts hard.
    blocks: a memory whose window was recorded applies its rule to the record, as often as its options say (with write
    time online, wake was the first time); records are emptied, evicted slots are zeroed.
    """

    window: int
    sinks: int
    eviction: Eviction
    groups: Groups
    name: ClassVar[str] = "add-sleep"
    effect: ClassVar[Effect] = "APPROXIMATE"

    def run(self, program: ProgramGraphs) -> int:
        """The number of graphs added."""
        options = {i: group.options for group in self.groups for i in group.layers}
        of_class = {block.cls: options.get(i) for i, block in enumerate(program.layout)}
        program.clock, program.window = self._clock(program), self.window
        for name, cls in program.classes.items():
            cls.sleep = self._sleep(f"{name}.sleep", cls, of_class[name])
        return 1 + len(program.classes)

    def _clock(self, program: ProgramGraphs) -> Graph:
        graph = Graph("clock")
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
        for window in sorted({w for cls in program.classes.values() if (w := self._ring(cls))}):
            results[slots_name(window)] = e.ours("window_slots", tokens, window=window, sinks=self.sinks)
            places = e.unsqueeze(e.call(aten.arange.default, window + self.sinks), 0)
            sink = e.call(aten.lt.Scalar, places, self.sinks)
            keep = e.call(aten.logical_or.default, e.unsqueeze(e.call(aten.logical_not.default, hard), 1), sink)
            results[keep_name(window)] = keep
        restarted = e.call(aten.clamp.default, position, None, self.sinks)
        results |= {name: e.call(aten.zeros_like.default, node) for name, node in ports.items()}
        results["position"] = e.where(hard, restarted, position)
        results["slept"] = e.call(aten.ones_like.default, slept)
        if OFFSET.name in ports:
            longest = max(map(self._ring, program.classes.values()))
            oldest = e.call(aten.sub.Scalar, position, self.sinks + longest)
            results[OFFSET.name] = e.where(late, oldest, ports[OFFSET.name])
        graph.set_returns(results)
        graph.drop_dead()
        infer_types(graph)
        return graph

    def _late(self, e: Emit, position: fx.Node, offset: fx.Node | None, max_positions: int | None) -> fx.Node:
        """For which rows the next window would pass the model's last position: bool [B]."""
        limit = torch.iinfo(torch.int64).max if max_positions is None else max_positions - self.window
        return e.call(aten.gt.Scalar, position if offset is None else e.sub(position, offset), limit)

    def _hard(self, e: Emit, position: fx.Node, late: fx.Node, renumbers: bool) -> fx.Node:
        """Which rows this sleep evicts hard: bool [B]."""
        if self.eviction == "hard":
            return e.call(aten.ge.Scalar, position, 0)
        return e.call(aten.lt.Scalar, position, 0) if renumbers else late

    def _ring(self, cls: BlockClass) -> int:
        """The length of the class's KV window, 0 for none."""
        return next((int(s.dims[2]) - self.sinks for s in cls.states if s.name == "k"), 0)

    def _sleep(self, name: str, cls: BlockClass, options: MemoryOptions | None) -> Graph:
        graph, window = Graph(name), self._ring(cls)
        states = {s.name: graph.add_port("state", s.name, s.type()) for s in cls.states}
        graph.set_returns(dict(list(states.items())[:1]))
        e = Emit(graph, "sleep")
        results: dict[str, fx.Node] = {}
        if options is not None and "record.k" in states:
            results |= self._consolidate(e, cls, states, options)
        if window:
            keep = graph.add_port("input", keep_name(window), TensorType(torch.bool, ("B", window + self.sinks)))
            results |= {n: e.where(e.unsqueeze(keep, 1, -1), states[n], 0.0) for n in ("k", "v")}
        results |= {n: e.call(aten.zeros_like.default, s) for n, s in states.items() if n.startswith(RECORDS)}
        graph.set_returns(results)
        graph.drop_dead()
        infer_types(graph)
        return graph

    def _consolidate(
        self, e: Emit, cls: BlockClass, states: dict[str, fx.Node], options: MemoryOptions
    ) -> dict[str, fx.Node]:
        """The memory's tensors after the rule was applied to the record."""
        names = list(find_rule(options.rule).states(1, 1, 1))
        dtype = next(s.dtype for s in cls.states if s.name == names[0])
        beta = states["record.beta"]
        new = e.ours(
            "replay",
            e.cast(states["record.k"], dtype),
            e.cast(self._values(e, cls, states), dtype),
            states["record.g"] if "record.g" in states else e.call(aten.zeros_like.default, beta),
            beta,
            [states[n] for n in names],
            rule=options.rule,
            passes=options.replays,
            written=options.write == "online",
        )
        return {n: e.item(new, i) for i, n in enumerate(names)}

    def _values(self, e: Emit, cls: BlockClass, states: dict[str, fx.Node]) -> fx.Node:
        """The window's values [B,H,L,d_v]. The KV window may hold them anyway; slots beyond them have beta = 0."""
        if "record.v" in states:
            return states["record.v"]
        window = self._ring(cls)
        at = e.graph.add_port("input", slots_name(window), TensorType(torch.int64, ("B", self.window)))
        _, heads, _, width = next(s for s in cls.states if s.name == "v").dims
        index = e.call(aten.expand.default, e.unsqueeze(at, 1, -1), [-1, heads, -1, width])
        return e.call(aten.gather.default, states["v"], 2, index)


def keep_name(window: int) -> str:
    """The name of which slots stay, in KV windows of this length."""
    return f"keep.{window}"
