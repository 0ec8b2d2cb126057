"""Strategy `replace`: a gated delta-rule mixer takes over a layer's projections, and attention goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from sleepc.ir.program import BlockClass, ProgramGraphs
from sleepc.memory.parameters import CLOSED_GATE, PROJECTION
from sleepc.passes.analysis.find_sites import find_site
from sleepc.passes.base import Effect, Pass
from sleepc.passes.facts import AWAKE, BLOCKS, CLOCKED, Fact
from sleepc.passes.lib.classes import chosen_classes
from sleepc.passes.lib.emit import Emit, aten
from sleepc.passes.plan import Groups, MemoryOptions
from sleepc.passes.rewrite.memory import MemoryBuilder, NewParam, add_memories
from sleepc.passes.rewrite.mixer import mix
from sleepc.passes.rewrite.native import check_output, drop_unread, epsilon_of, folded


@dataclass(frozen=True)
class ReplaceAttention(Pass):
    """attention(q, k, v) -> RMSNorm_head(o)·silu(W_g x), o the memory's answer (semantics.md, section 5).

    q, k, v are what the layer made of x before positions were applied: its projections with their biases and norms stay
    where they are, in front of the mixer, and its output projection behind it. Keys and values are expanded by head, as
    native Gated DeltaNet layers have them, one memory for each query head, scale 1/√d_k. W_g is zero at start, which is
    the layer without its attention: the safe start (conversion.md 2; a random gate is worse than none).

    Layout `native` (docs/native.md) makes one map of the projections, with the class's own epsilon and no biases.
    """

    groups: Groups
    name: ClassVar[str] = "replace-attention"
    effect: ClassVar[Effect] = "REPLACES"
    requires: ClassVar[tuple[Fact, ...]] = (BLOCKS, CLOCKED, AWAKE)

    def run(self, program: ProgramGraphs) -> int:
        """The number of block classes whose attention went."""
        count = add_memories(program, self.groups, _replace)
        for group in self.groups:
            if group.options.layout == "native":
                for name in chosen_classes(program, group.layers):
                    drop_unread(program, program.classes[name])
        return count


def _replace(program: ProgramGraphs, cls: BlockClass, options: MemoryOptions) -> list[NewParam]:
    site = find_site(cls.wake)
    build = MemoryBuilder(program, cls, options, site, heads=site.q_heads)
    e = Emit(build.graph, "memory", site.node)
    x = e.cast(site.x, build.dtype)
    y = _native_channels(build, e, x) if options.layout == "native" else _channels(build, e)
    mixed, written = mix(build, e, x, y, CLOSED_GATE, site.d_k**-0.5)
    by_head = e.reshape(mixed, [e.size(x, 0), e.size(x, 1), site.q_heads, site.d_v])
    out = e.cast(e.transpose(by_head, 1, 2), program.dtype)
    site.node.replace_all_uses_with(out)
    build.graph.fx.erase_node(site.node)
    build.records(Emit(build.graph, "memory"), written, with_v=True)
    build.finish(written)
    return build.new


def _native_channels(build: MemoryBuilder, e: Emit, x: fx.Node) -> fx.Node:
    """q|k|v of all query heads [B,T,channels] as one linear map of x. Raises UsageError for a layer that has none."""
    program, cls, site = build.program, build.cls, build.site
    first = next(i for i, block in enumerate(program.layout) if program.classes[block.cls] is cls)
    where = f"layer {first}"
    check_output(site, where)
    build.epsilon = epsilon_of(site, where)
    return e.linear(x, build.param(PROJECTION, made=folded(cls.wake, site, where)))


def _channels(build: MemoryBuilder, e: Emit) -> fx.Node:
    """q|k|v of all query heads side by side, [B,T,channels]: heads that share keys and values get copies."""
    site = build.site
    copies = site.q_heads // site.kv_heads
    parts = []
    for value, width in ((site.q, site.d_k), (site.k, site.d_k), (site.v, site.d_v)):
        if value is not site.q and copies > 1:
            value = e.call(aten.repeat_interleave.self_int, value, copies, 1)
        rows = e.transpose(e.cast(value, build.dtype), 1, 2)
        parts.append(e.reshape(rows, [e.size(value, 0), e.size(value, 2), site.q_heads * width]))
    return e.call(aten.cat.default, parts, -1)
