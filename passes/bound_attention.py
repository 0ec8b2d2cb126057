"""Attention over everything becomes attention over sinks and a ring of the latest tokens; a clock comes into the
program.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from sleepc.errors import UsageError
from sleepc.ir.infer import infer_types
from sleepc.ir.program import ProgramGraphs, StateSpec
from sleepc.ir.types import TensorType
from sleepc.passes.base import Effect, Pass
from sleepc.passes.classes import chosen_classes
from sleepc.passes.emit import Emit, aten
from sleepc.passes.find_sites import find_site
from sleepc.passes.plan import Rings
from sleepc.passes.window_masks import WindowMask

CLOCK = (
    StateSpec("position", ("B",), torch.int64, "accumulate"),
    StateSpec("since", ("B",), torch.int64, "accumulate"),
    StateSpec("slept", ("B",), torch.bool, "overwrite"),
)
ROW = TensorType(torch.int64, ("B",))


@dataclass(frozen=True)
class BoundAttention(Pass):
    """The attention layers in `rings` keep a KV window of sinks + window slots (semantics.md, section 2 and 4).

    embed: takes lengths [B] and the clock (position, since, slept) instead of positions, and hands on, for all blocks:
    record slots [B,T] of the new tokens, which of them are real, how many, and whether the row has slept; for each
    length of a KV window the tokens' slots [B,T], and one mask for all layers that see alike (window_masks.py).
    blocks: attention -> window_attention over the old window and the new tokens, which are written into it last.
    Raises UsageError where window plus sinks is more than the positions that the model has.
    """

    rings: Rings
    sinks: int
    name: ClassVar[str] = "bound-attention"
    effect: ClassVar[Effect] = "APPROXIMATE"

    def run(self, program: ProgramGraphs) -> int:
        """The number of block classes rewritten."""
        masks: dict[WindowMask, str] = {}
        rewritten = 0
        for length, layers in self.rings:
            window = self._window(program, length)
            for name in chosen_classes(program, layers):
                self._bind_block(program, name, window, masks)
                rewritten += 1
        _wind_clock(program, masks)
        program.states = CLOCK
        return max(rewritten, 1)

    def _window(self, program: ProgramGraphs, length: int | None) -> int:
        limit = program.max_positions
        if length is None and limit is None:
            raise UsageError(
                "the model does not say how many positions it has, so a layer cannot keep all of them",
                where="overrides: window: none",
                fix="Give a number of tokens instead of none.",
            )
        window = limit - self.sinks if length is None and limit is not None else length
        assert window is not None
        if limit is not None and self.sinks + window > limit:
            raise UsageError(
                f"a window of {window} and {self.sinks} sinks need {window + self.sinks} positions, "
                f"and the model has {limit}",
                where="--window, --sinks",
                fix=f"Choose --window {limit - self.sinks} or less.",
            )
        return window

    def _bind_block(self, program: ProgramGraphs, name: str, window: int, masks: dict[WindowMask, str]) -> None:
        cls = program.classes[name]
        graph = cls.wake
        site = find_site(graph)
        slots = self.sinks + window
        specs = [
            StateSpec("k", ("B", site.kv_heads, slots, site.d_k), program.dtype, "ring"),
            StateSpec("v", ("B", site.kv_heads, slots, site.d_v), program.dtype, "ring"),
        ]
        seen = WindowMask.of(site, window, self.sinks)
        mask = graph.add_port("input", masks.setdefault(seen, f"mask.{len(masks)}"), seen.type(bias_dtype(program)))
        new_slots = graph.add_port("input", slots_name(window), TensorType(torch.int64, ("B", "T")))
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


def slots_name(window: int) -> str:
    """The name of the slots in KV windows of this length."""
    return f"slots.{window}"


def bias_dtype(program: ProgramGraphs) -> torch.dtype:
    """Numbers added to scores are float32, and float64 where the model is."""
    return torch.float64 if program.dtype == torch.float64 else torch.float32


def _wind_clock(program: ProgramGraphs, masks: dict[WindowMask, str]) -> None:
    embed = program.embed
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
    results["record_slots"] = e.where(real, e.add(e.unsqueeze(since, 1), steps), -1)
    for mask, name in masks.items():
        if slots_name(mask.window) not in results:
            sizes = {"window": mask.window, "sinks": mask.sinks}
            results[slots_name(mask.window)] = e.ours("window_slots", positions, **sizes)
        results[name] = mask.emit(e, positions, position, bias_dtype(program))
    results["real"] = real
    # Handed on as they are; a result may not be a port itself where a lowering writes ports in place.
    results["lengths"] = e.call(aten.clone.default, lengths)
    results["live"] = e.call(aten.clone.default, slept)
    results["position"], results["since"] = e.add(position, lengths), e.add(since, lengths)
    embed.set_returns(results)
    infer_types(embed)
