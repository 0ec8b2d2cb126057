"""The sleep hooks: what a sleep does to the counters (clock) and to the state of each block class (its sleep graph)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from sleepc.ir.graph import Graph
from sleepc.ir.infer import infer_types
from sleepc.ir.program import BlockClass, ProgramGraphs
from sleepc.ir.types import TensorType
from sleepc.ops.rules import find as find_rule
from sleepc.passes.base import Effect, Pass
from sleepc.passes.bound_attention import CLOCK
from sleepc.passes.emit import Emit, aten
from sleepc.passes.memory import MemoryOptions

Eviction = Literal["sliding", "hard"]


@dataclass(frozen=True)
class AddSleep(Pass):
    """Consolidation `replay` and eviction (semantics.md, section 4). No hidden state is computed again.

    clock: (position, since, slept) -> new counters; the window slots [B,L] of the tokens since the last sleep; which
    slots
    [B,sinks+L] stay. Hard eviction keeps the sinks; sliding keeps all, unless the next window would pass the last
    position.
    blocks: every memory replays the window's record `passes` times (write time online: wake was the first), the record
    is
    emptied, evicted slots are zeroed.
    """

    sinks: int
    eviction: Eviction
    options: MemoryOptions
    name: ClassVar[str] = "add-sleep"
    effect: ClassVar[Effect] = "APPROXIMATE"

    def run(self, program: ProgramGraphs) -> int:
        """The number of graphs added."""
        program.clock = self._clock(program.max_positions)
        for name, cls in program.classes.items():
            cls.sleep = self._sleep(f"{name}.sleep", cls)
        return 1 + len(program.classes)

    def _clock(self, max_positions: int | None) -> Graph:
        graph, window, sinks = Graph("clock"), self.options.window, self.sinks
        position, since, slept = (graph.add_port("state", s.name, s.type()) for s in CLOCK)
        graph.set_returns({"slept": slept})
        e = Emit(graph, "clock")
        steps = e.unsqueeze(e.call(aten.arange.default, window), 0)
        held = e.call(aten.lt.Tensor, steps, e.unsqueeze(since, 1))
        tokens = e.where(held, e.add(e.unsqueeze(e.sub(position, since), 1), steps), 0)
        slots = e.ours("window_slots", tokens, window=window, sinks=sinks)
        hard = self._hard(e, position, max_positions)
        places = e.unsqueeze(e.call(aten.arange.default, window + sinks), 0)
        sink = e.call(aten.lt.Scalar, places, sinks)
        keep = e.call(aten.logical_or.default, e.unsqueeze(e.call(aten.logical_not.default, hard), 1), sink)
        restarted = e.call(aten.clamp.default, position, None, sinks)
        graph.set_returns(
            {
                "slots": slots,
                "keep": keep,
                "position": e.where(hard, restarted, position),
                "since": e.call(aten.zeros_like.default, since),
                "slept": e.call(aten.ones_like.default, slept),
            }
        )
        graph.drop_dead()
        infer_types(graph)
        return graph

    def _hard(self, e: Emit, position: torch.fx.Node, max_positions: int | None) -> torch.fx.Node:
        """Which rows this sleep evicts hard: bool [B]."""
        if self.eviction == "hard":
            return e.call(aten.ge.Scalar, position, 0)
        limit = torch.iinfo(torch.int64).max if max_positions is None else max_positions - self.options.window
        return e.call(aten.gt.Scalar, position, limit)

    def _sleep(self, name: str, cls: BlockClass) -> Graph:
        graph = Graph(name)
        window, slots = self.options.window, self.options.window + self.sinks
        at = graph.add_port("input", "slots", TensorType(torch.int64, ("B", window)))
        keep = graph.add_port("input", "keep", TensorType(torch.bool, ("B", slots)))
        states = {s.name: graph.add_port("state", s.name, s.type()) for s in cls.states}
        graph.set_returns({"k": states["k"]})
        e = Emit(graph, "sleep")
        results: dict[str, torch.fx.Node] = {}
        if "record.k" in states:
            results |= self._replay(e, cls, states, at)
        kept = e.unsqueeze(keep, 1, -1)
        results |= {n: e.where(kept, states[n], 0.0) for n in ("k", "v")}
        results |= {n: e.call(aten.zeros_like.default, s) for n, s in states.items() if n.startswith("record.")}
        graph.set_returns(results)
        graph.drop_dead()
        infer_types(graph)
        return graph

    def _replay(
        self, e: Emit, cls: BlockClass, states: dict[str, torch.fx.Node], at: torch.fx.Node
    ) -> dict[str, torch.fx.Node]:
        memory = next(s for s in cls.states if s.name not in ("k", "v"))
        _, heads, _, width = next(s for s in cls.states if s.name == "v").dims
        if "record.v" in states:
            values = states["record.v"]
        else:
            # The KV window holds the tokens of the window anyway; slots beyond them have beta = 0.
            index = e.call(aten.expand.default, e.unsqueeze(at, 1, -1), [-1, heads, -1, width])
            values = e.call(aten.gather.default, states["v"], 2, index)
        names = list(find_rule(self.options.rule).states(1, 1, 1))
        record = [e.cast(value, memory.dtype) for value in (states["record.k"], values)]
        new = e.ours(
            "replay",
            *record,
            states["record.g"],
            states["record.beta"],
            [states[n] for n in names],
            rule=self.options.rule,
            passes=self.options.passes,
            written=self.options.write == "online",
        )
        return {n: e.item(new, i) for i, n in enumerate(names)}
