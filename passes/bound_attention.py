"""Attention over everything becomes attention over sinks and a ring of the latest tokens; a clock comes into the
program.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from sleepc.errors import UsageError
from sleepc.ir.graph import Graph
from sleepc.ir.infer import infer_types
from sleepc.ir.program import ProgramGraphs, StateSpec
from sleepc.ir.types import TensorType
from sleepc.passes.base import Effect, Pass
from sleepc.passes.emit import Emit, aten
from sleepc.passes.find_sites import find_site

CLOCK = (
    StateSpec("position", ("B",), torch.int64, "accumulate"),
    StateSpec("since", ("B",), torch.int64, "accumulate"),
    StateSpec("slept", ("B",), torch.bool, "overwrite"),
)
ROW = TensorType(torch.int64, ("B",))


@dataclass(frozen=True)
class BoundAttention(Pass):
    """Every attention layer keeps a KV window of `sinks` + `window` slots (semantics.md, section 2 and 4).

    embed: takes lengths [B] and the clock (position, since, slept) instead of positions, and hands on, for all blocks:
    slots and
    record slots [B,T] of the new tokens, one mask [B,1,T,sinks+window+T] for each window that layers have of their own,
    which tokens are real, how many, and whether the row has slept.
    blocks: attention -> window_attention over the old window and the new tokens, which are written into it last.
    Raises UsageError where window plus sinks is more than the positions that the model has.
    """

    window: int
    sinks: int
    name: ClassVar[str] = "bound-attention"
    effect: ClassVar[Effect] = "APPROXIMATE"

    def run(self, program: ProgramGraphs) -> int:
        """The number of block classes rewritten."""
        limit = program.max_positions
        if limit is not None and self.sinks + self.window > limit:
            raise UsageError(
                f"a window of {self.window} and {self.sinks} sinks need {self.window + self.sinks} positions, "
                f"and the model has {limit}",
                where="--window, --sinks",
                fix=f"Choose --window {limit - self.sinks} or less.",
            )
        own_windows = sorted({self._bind_block(program, name) for name in program.classes})
        _wind_clock(program.embed, self, own_windows)
        program.states = CLOCK
        return len(program.classes)

    def _bind_block(self, program: ProgramGraphs, name: str) -> int:
        cls = program.classes[name]
        graph = cls.wake
        site = find_site(graph)
        slots = self.sinks + self.window
        specs = [
            StateSpec("k", ("B", site.kv_heads, slots, site.d_k), program.dtype, "ring"),
            StateSpec("v", ("B", site.kv_heads, slots, site.d_v), program.dtype, "ring"),
        ]
        own = site.window if 0 < site.window <= self.window else 0
        mask_type = TensorType(torch.bool, ("B", 1, "T", f"T+{slots}"))
        mask = graph.add_port("input", mask_name(own), mask_type)
        new_slots = graph.add_port("input", "slots", TensorType(torch.int64, ("B", "T")))
        k_window, v_window = (graph.add_port("state", s.name, s.type()) for s in specs)
        q, k, v = site.node.args[:3]
        e = Emit(graph, str(site.node.meta.get("source", "")), site.node)
        out = e.ours(
            "window_attention",
            q,
            k,
            v,
            k_window,
            v_window,
            mask,
            site.node.args[4],
            scale=site.scale,
            softcap=site.softcap,
        )
        site.node.replace_all_uses_with(out)
        graph.fx.erase_node(site.node)
        e = Emit(graph, e.source)
        results = graph.results()
        results["k"] = e.ours("write_slots", k_window, k, new_slots)
        results["v"] = e.ours("write_slots", v_window, v, new_slots)
        graph.set_returns(results)
        graph.drop_dead()
        infer_types(graph)
        cls.states = (*cls.states, *specs)
        return own


def mask_name(own: int) -> str:
    """The name of the mask of layers with a window of their own (0: none)."""
    return f"mask.{own}" if own else "mask"


def _wind_clock(embed: Graph, bound: BoundAttention, own_windows: list[int]) -> None:
    results = embed.results()
    ports = embed.ports()
    tokens, old_positions = ports["tokens"], ports["positions"]
    lengths = embed.add_port("input", "lengths", ROW)
    position, since, slept = (embed.add_port("state", s.name, s.type()) for s in CLOCK)
    first = next(iter(embed.calls()))
    e = Emit(embed, "clock", first)
    steps = e.unsqueeze(e.call(aten.arange.default, e.size(tokens, 1)), 0)
    real = e.call(aten.lt.Tensor, steps, e.unsqueeze(lengths, 1))
    counted = e.add(e.unsqueeze(position, 1), steps)
    positions = e.where(real, counted, -1)
    e_safe = e.where(real, counted, 0)
    old_positions.replace_all_uses_with(e_safe)
    embed.fx.erase_node(old_positions)
    results = {name: (e_safe if node is old_positions else node) for name, node in results.items()}
    sizes = {"window": bound.window, "sinks": bound.sinks}
    results["slots"] = e.ours("window_slots", positions, **sizes)
    results["record_slots"] = e.where(real, e.add(e.unsqueeze(since, 1), steps), -1)
    for own in own_windows:
        results[mask_name(own)] = e.ours("window_mask", positions, position, **sizes, own=own)
    results["real"] = real
    # Handed on as they are; a result may not be a port itself where a lowering writes ports in place.
    results["lengths"] = e.call(aten.clone.default, lengths)
    results["live"] = e.call(aten.clone.default, slept)
    results["position"], results["since"] = e.add(position, lengths), e.add(since, lengths)
    embed.set_returns(results)
    infer_types(embed)


def type_of(graph: Graph, result: str) -> TensorType:
    """The type of a named result."""
    found = graph.results()[result].meta["type"]
    assert isinstance(found, TensorType)
    return found


def embed_port(program: ProgramGraphs, graph: Graph, name: str) -> fx.Node:
    """The block's input port for embed's result `name`, added if the block does not read it yet."""
    found: fx.Node | None = graph.ports().get(name)
    return found or graph.add_port("input", name, type_of(program.embed, name))
