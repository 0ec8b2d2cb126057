"""Strategy `insert`: a delta-rule mixer of its own on the residual stream after a block, silent at first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sleepc.ir.program import BlockClass, ProgramGraphs
from sleepc.memory.parameters import NORM, OUT_GATE, OUTPUT, PROJECTION
from sleepc.passes.analysis.find_sites import find_site
from sleepc.passes.base import Effect, Pass
from sleepc.passes.facts import AWAKE, BLOCKS, CLOCKED, Fact
from sleepc.passes.lib.emit import Emit
from sleepc.passes.plan import Groups, MemoryOptions
from sleepc.passes.rewrite.memory import MemoryBuilder, NewParam, add_memories
from sleepc.passes.rewrite.mixer import mix, rms

SCALE = 1.0


@dataclass(frozen=True)
class InsertMemory(Pass):
    """h + W_o (RMSNorm_head(o) · silu(W_g x)), x = RMSNorm(h), o the memory's answer to q of silu(conv(W_qkv x))
    (semantics.md, section 5). W_o is zero at start: the program computes what it did before.
    """

    groups: Groups
    name: ClassVar[str] = "insert-memory"
    effect: ClassVar[Effect] = "APPROXIMATE"
    requires: ClassVar[tuple[Fact, ...]] = (BLOCKS, CLOCKED, AWAKE)

    def run(self, program: ProgramGraphs) -> int:
        """The number of block classes that got a mixer."""
        return add_memories(program, self.groups, _insert)


def _insert(program: ProgramGraphs, cls: BlockClass, options: MemoryOptions) -> list[NewParam]:
    build = MemoryBuilder(program, cls, options, find_site(cls.wake))
    e = Emit(build.graph, "memory")
    h = e.cast(build.results["h"], build.dtype)
    x = e.mul(rms(e, h, build.epsilon), build.param(NORM))
    y = e.linear(x, build.param(PROJECTION))
    mixed, written = mix(build, e, x, y, OUT_GATE, SCALE)
    out = e.linear(mixed, build.param(OUTPUT))
    build.results["h"] = e.cast(e.add(h, out), program.dtype)
    build.records(e, written, with_v=True)
    build.finish(written)
    return build.new
