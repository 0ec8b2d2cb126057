"""Strategy `parallel`: a memory beside the windowed attention, on the layer's own q, k, v before positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from sleepc.ir.infer import infer_types
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.base import Effect, Pass
from sleepc.passes.emit import Emit, aten
from sleepc.passes.find_sites import find_site
from sleepc.passes.memory import MemoryBuilder, MemoryOptions, add_to_layout, chosen_classes, filled, identities, zeros

MIX_BIAS = -4.0
SCALE = 1.0  # with unit keys a stored value comes back at its own size


@dataclass(frozen=True)
class AddMemory(Pass):
    """(1 - m)·o_window + m·o_memory, m = sigmoid(W_m x + b_m) per head, 0 until the row's first sleep (semantics.md,
    section 5).

    q and k pass a map per head, identity at start, then the L2 norm; with write time `sleep` the memory is only read
    in wake, and
    keys, gates (and values, where the KV window does not hold them anyway) are recorded.
    """

    layers: tuple[int, ...]
    options: MemoryOptions
    name: ClassVar[str] = "add-memory"
    effect: ClassVar[Effect] = "APPROXIMATE"

    def run(self, program: ProgramGraphs) -> int:
        """The number of block classes that got a memory."""
        classes = chosen_classes(program, self.layers)
        for name in classes:
            build = MemoryBuilder(program, program.classes[name], self.options, find_site(program.classes[name].wake))
            _add(build)
            infer_types(build.graph)
            add_to_layout(program, name, build.new, self.options.seed)
        return len(classes)


def _add(build: MemoryBuilder) -> None:
    graph, site, options = build.graph, build.site, build.options
    results = graph.results()
    old_users = list(site.node.users)
    e = Emit(graph, "memory", old_users[0])
    real = build.shared("real")
    x = e.cast(site.x, build.dtype)
    q = _mapped(build, e, site.q, "memory.m_q", site.q_heads)
    k = e.mul(_mapped(build, e, site.k, "memory.m_k", site.kv_heads), e.unsqueeze(real, 1, -1))
    memories = build.memories()
    gated = options.recorded or options.write == "online"
    g, beta = build.gates(e, x, real) if gated else (None, None)
    if options.write == "online":
        both = e.ours(
            "delta_rule",
            q,
            k,
            e.cast(site.v, build.dtype),
            g,
            beta,
            list(memories.values()),
            rule=options.rule,
            scale=SCALE,
        )
        out = e.item(both, 0)
        results |= {name: e.item(both, 1 + i) for i, name in enumerate(memories)}
    else:
        out = e.ours("delta_rule_read", q, list(memories.values()), rule=options.rule, scale=SCALE)
    mixed = _mix(build, e, x, out)
    for user in old_users:
        user.replace_input_with(site.node, mixed)
    if options.recorded:
        assert g is not None
        assert beta is not None
        late = Emit(graph, "memory")
        dtype = build.program.dtype
        results["record.k"] = build.record(late, "record.k", late.cast(k, dtype), dtype, (site.d_k,))
        results["record.g"] = build.record(late, "record.g", g, build.dtype, ())
        results["record.beta"] = build.record(late, "record.beta", beta, build.dtype, ())
    build.finish(results)


def _mapped(build: MemoryBuilder, e: Emit, value: fx.Node, name: str, heads: int) -> fx.Node:
    width = build.site.d_k
    weight = e.reshape(build.param(name, (heads * width, width), identities(heads, width)), [heads, width, width])
    return e.ours("l2norm", e.call(aten.matmul.default, e.cast(value, build.dtype), weight))


def _mix(build: MemoryBuilder, e: Emit, x: fx.Node, memory: fx.Node) -> fx.Node:
    heads, hidden = build.site.q_heads, build.program.hidden
    weight = build.param("memory.w_m", (heads, hidden), zeros(heads, hidden))
    bias = build.param("memory.b_m", (heads,), filled(MIX_BIAS, heads))
    m = e.call(aten.sigmoid.default, e.linear(x, weight, bias))
    m = e.unsqueeze(e.transpose(m, 1, 2), -1)
    m = e.mul(m, e.unsqueeze(build.shared("live"), -1, -1, -1))
    window = e.cast(build.site.node, build.dtype)
    kept = e.mul(window, e.add(e.neg(m), 1.0))
    return e.cast(e.add(kept, e.mul(memory, m)), build.program.dtype)
