"""Strategy `insert`: a delta-rule mixer of its own on the residual stream after a block, silent at first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from sleepc.ir.infer import infer_types
from sleepc.ir.program import ProgramGraphs, StateSpec
from sleepc.passes.base import Effect, Pass
from sleepc.passes.emit import Emit, aten
from sleepc.passes.find_sites import find_site
from sleepc.passes.memory import (
    MemoryBuilder,
    MemoryOptions,
    add_to_layout,
    chosen_classes,
    filled,
    identity_taps,
    normal,
    zeros,
)

SCALE = 1.0
TAPS = 4
EPSILON = 1e-6


@dataclass(frozen=True)
class InsertMemory(Pass):
    """h + W_o (RMSNorm_head(o) · silu(W_g x)), x = RMSNorm(h), o the memory's answer to q of silu(conv(W_qkv x))
    (semantics.md,
    section 5; the layer of conversion.md 1). W_o is zero at start: the program computes what it did before.
    """

    layers: tuple[int, ...]
    options: MemoryOptions
    name: ClassVar[str] = "insert-memory"
    effect: ClassVar[Effect] = "APPROXIMATE"

    def run(self, program: ProgramGraphs) -> int:
        """The number of block classes that got a mixer."""
        classes = chosen_classes(program, self.layers)
        for name in classes:
            build = MemoryBuilder(program, program.classes[name], self.options, find_site(program.classes[name].wake))
            _insert(build)
            infer_types(build.graph)
            add_to_layout(program, name, build.new, self.options.seed)
        return len(classes)


def _insert(build: MemoryBuilder) -> None:
    graph, site, options = build.graph, build.site, build.options
    results = graph.results()
    e = Emit(graph, "memory")
    hidden = build.program.hidden
    real = build.shared("real")
    h = e.cast(results["h"], build.dtype)
    x = e.mul(_rms(e, h), build.param("memory.norm", (hidden,), filled(1.0, hidden)))
    q, k, v, results["tail"] = _project(build, e, x)
    k = e.mul(k, e.unsqueeze(real, 1, -1))
    g, beta = build.gates(e, x, real)
    memories = build.memories()
    if options.write == "online":
        both = e.ours("delta_rule", q, k, v, g, beta, list(memories.values()), rule=options.rule, scale=SCALE)
        out = e.item(both, 0)
        results |= {name: e.item(both, 1 + i) for i, name in enumerate(memories)}
    else:
        out = e.ours("delta_rule_read", q, list(memories.values()), rule=options.rule, scale=SCALE)
    results["h"] = e.cast(e.add(h, _output(build, e, x, out)), build.program.dtype)
    if options.recorded:
        dtype = build.program.dtype
        results["record.k"] = build.record(e, "record.k", e.cast(k, dtype), dtype, (site.d_k,))
        results["record.v"] = build.record(e, "record.v", e.cast(v, dtype), dtype, (site.d_v,))
        results["record.g"] = build.record(e, "record.g", g, build.dtype, ())
        results["record.beta"] = build.record(e, "record.beta", beta, build.dtype, ())
    build.finish(results)


def _rms(e: Emit, x: fx.Node) -> fx.Node:
    square = e.call(aten.mean.dim, e.mul(x, x), [-1], True)
    return e.mul(x, e.call(aten.rsqrt.default, e.add(square, EPSILON)))


def _project(build: MemoryBuilder, e: Emit, x: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node, fx.Node]:
    """q, k [B,H,T,d_k] of unit length, v [B,Hkv,T,d_v], and the convolution's new tail."""
    site, hidden = build.site, build.program.hidden
    widths = [site.q_heads * site.d_k, site.kv_heads * site.d_k, site.kv_heads * site.d_v]
    channels = sum(widths)
    y = e.linear(x, build.param("memory.w_qkv", (channels, hidden), normal(channels, hidden)))
    taps = build.param("memory.conv", (channels, TAPS), identity_taps(channels, TAPS))
    tail = build.state(StateSpec("tail", ("B", channels, TAPS - 1), build.dtype, "overwrite"))
    convolved = e.ours("short_conv", y, taps, tail, build.shared("lengths"))
    y = e.call(aten.silu.default, e.item(convolved, 0))
    parts, start = [], 0
    for width, heads in zip(widths, (site.q_heads, site.kv_heads, site.kv_heads), strict=True):
        part = e.call(aten.slice.Tensor, y, -1, start, start + width)
        start += width
        batch, length = e.size(x, 0), e.size(x, 1)
        parts.append(e.transpose(e.reshape(part, [batch, length, heads, width // heads]), 1, 2))
    q, k, v = parts
    return e.ours("l2norm", q), e.ours("l2norm", k), v, e.item(convolved, 1)


def _output(build: MemoryBuilder, e: Emit, x: fx.Node, out: fx.Node) -> fx.Node:
    site, hidden = build.site, build.program.hidden
    width = site.q_heads * site.d_v
    normed = e.mul(_rms(e, out), build.param("memory.out_norm", (site.d_v,), filled(1.0, site.d_v)))
    merged = e.reshape(e.transpose(normed, 1, 2), [e.size(x, 0), e.size(x, 1), width])
    gate = e.call(aten.silu.default, e.linear(x, build.param("memory.w_g", (width, hidden), normal(width, hidden))))
    return e.linear(e.mul(merged, gate), build.param("memory.w_o", (hidden, width), zeros(hidden, width)))
