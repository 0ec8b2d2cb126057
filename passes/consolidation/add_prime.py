"""Consolidation `gradient`: an MLP more behind some blocks, whose maps have states that sleeps learn (TTT-E2E)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from sleepc.ir.infer import infer_types
from sleepc.ir.program import BlockClass, ProgramGraphs
from sleepc.ir.states import StateSpec
from sleepc.ir.types import TensorType, wide_dtype
from sleepc.memory.parameters import PRIME, PRIME_NORM, Parameter, Sizes, into_learned
from sleepc.passes.base import Effect, Pass
from sleepc.passes.facts import AWAKE, BLOCKS, BOUNDED, CLOCKED, Fact
from sleepc.passes.lib.classes import chosen_classes
from sleepc.passes.lib.emit import Emit, aten
from sleepc.passes.rewrite.memory import EPSILON, NewParam, add_to_layout
from sleepc.passes.rewrite.mixer import rms


@dataclass(frozen=True)
class AddPrimeMlps(Pass):
    """h + down(silu(gate x) * up x), x = RMSNorm(h), behind each of these blocks, as wide as h. Each map is
    W z + Dᵀ A z as in AddFastMaps, of `rank` rows; that of `down` is zero at first, so nothing changes until a sleep
    has learned.
    """

    layers: tuple[int, ...]
    rank: int
    seed: int
    name: ClassVar[str] = "add-prime-mlps"
    effect: ClassVar[Effect] = "APPROXIMATE"
    requires: ClassVar[tuple[Fact, ...]] = (BLOCKS, BOUNDED, CLOCKED, AWAKE)

    def run(self, program: ProgramGraphs) -> int:
        """The number of block classes that got one."""
        names = chosen_classes(program, self.layers)
        for name in names:
            cls = program.classes[name]
            new = _Prime(program, cls, self.rank).add()
            add_to_layout(program, name, new, self.seed)
            infer_types(cls.wake)
        return len(names)


class _Prime:
    """One that is added to a block class; `new` are its parameters."""

    def __init__(self, program: ProgramGraphs, cls: BlockClass, rank: int) -> None:
        self.program, self.cls = program, cls
        self.e, self.dtype = Emit(cls.wake, "gradient"), wide_dtype(program.dtype)
        self.rank = rank if rank < program.hidden else 0
        self.new: list[NewParam] = []

    def add(self) -> list[NewParam]:
        e, results = self.e, self.cls.wake.results()
        h = e.cast(results["h"], self.dtype)
        x = e.mul(rms(e, h, EPSILON), self._param(PRIME_NORM))
        opened = e.call(aten.silu.default, self._map("prime_gate", x))
        out = self._map("prime_down", e.mul(opened, self._map("prime_up", x)))
        results["h"] = e.cast(e.add(h, out), self.program.dtype)
        self.cls.wake.set_returns(results)
        return self.new

    def _map(self, part: str, z: fx.Node) -> fx.Node:
        """W z + Dᵀ A z."""
        e, width = self.e, self.program.hidden
        spec = StateSpec("fast", part, ("B", self.rank or width, width), self.dtype, "accumulate")
        fast = self.cls.wake.add_port("state", spec.name, spec.type())
        self.cls.states = (*self.cls.states, spec)
        weight, into = self._param(PRIME[part]), self._param(into_learned(part, width, self.rank))
        read = e.linear(z, into) if self.rank else e.mul(z, into)
        return e.add(e.linear(z, weight), e.call(aten.matmul.default, read, fast))

    def _param(self, parameter: Parameter) -> fx.Node:
        shape = parameter.shape(Sizes(0, 0, 0, 0, self.program.hidden))
        self.new.append(NewParam(parameter.port, shape, parameter.converted))
        return self.cls.wake.add_port("param", parameter.port, TensorType(self.dtype, shape))
