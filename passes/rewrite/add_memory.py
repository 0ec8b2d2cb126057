"""Strategy `parallel`: a memory next to the windowed attention, on the layer's own q, k, v before positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from sleepc.ir.program import BlockClass, ProgramGraphs
from sleepc.memory.parameters import KEY_MAP, MIX, MIX_BIAS, QUERY_MAP, Parameter
from sleepc.passes.analysis.find_sites import find_site
from sleepc.passes.base import Effect, Pass
from sleepc.passes.facts import AWAKE, BLOCKS, CLOCKED, Fact
from sleepc.passes.lib.emit import Emit, aten
from sleepc.passes.plan import Groups, MemoryOptions
from sleepc.passes.rewrite.features import featured
from sleepc.passes.rewrite.memory import MemoryBuilder, NewParam, add_memories

SCALE = 1.0  # with unit keys a stored value comes back at its own size


@dataclass(frozen=True)
class AddMemory(Pass):
    """o_window + m (o_memory - o_window), m = sigmoid(W_m x + b_m) per head, 0 until the row's first sleep
    (semantics.md, section 5).

    q and k pass a map per head, identity at start, then features and the L2 norm; with write time `sleep` the memory is
    only read in wake, and keys, gates (and values, if the KV window does not hold them anyway) are recorded.
    """

    groups: Groups
    name: ClassVar[str] = "add-memory"
    effect: ClassVar[Effect] = "APPROXIMATE"
    requires: ClassVar[tuple[Fact, ...]] = (BLOCKS, CLOCKED, AWAKE)

    def run(self, program: ProgramGraphs) -> int:
        """The number of block classes that got a memory."""
        return add_memories(program, self.groups, _add)


def _add(program: ProgramGraphs, cls: BlockClass, options: MemoryOptions) -> list[NewParam]:
    build = MemoryBuilder(program, cls, options, find_site(cls.wake))
    graph, site = build.graph, build.site
    old_users = list(site.node.users)
    e = Emit(graph, "memory", old_users[0])
    real = build.shared("real")
    x = e.cast(site.x, build.dtype)
    q = _mapped(build, e, site.q, QUERY_MAP, site.q_heads)
    k = e.mul(_mapped(build, e, site.k, KEY_MAP, site.kv_heads), e.unsqueeze(real, 1, -1))
    written = {"k": k, "v": e.cast(site.v, build.dtype)} | build.gates(e, x, real)
    out = build.answer(e, q, written, SCALE)
    mixed = _mix(build, e, x, out)
    for user in old_users:
        user.replace_input_with(site.node, mixed)
    build.records(Emit(graph, "memory"), written, with_v=False)
    build.finish(written)
    return build.new


def _mapped(build: MemoryBuilder, e: Emit, value: fx.Node, map_: Parameter, heads: int) -> fx.Node:
    width = build.site.d_k
    weight = e.reshape(build.param(map_), [heads, width, width])
    return featured(e, build.options.features, e.call(aten.matmul.default, e.cast(value, build.dtype), weight))


def _mix(build: MemoryBuilder, e: Emit, x: fx.Node, memory: fx.Node) -> fx.Node:
    weight, bias = build.param(MIX), build.param(MIX_BIAS)
    m = e.call(aten.sigmoid.default, e.linear(x, weight, bias))
    m = e.unsqueeze(e.transpose(m, 1, 2), -1)
    m = e.mul(m, e.unsqueeze(build.shared("live"), -1, -1, -1))
    window = e.cast(build.site.node, build.dtype)
    return e.cast(e.add(window, e.mul(m, e.sub(memory, window))), build.program.dtype)
