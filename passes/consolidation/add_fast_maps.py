"""Consolidation `gradient`: states beside some linear maps, which sleeps learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from sleepc.errors import UsageError
from sleepc.ir.graph import Graph
from sleepc.ir.infer import infer_types
from sleepc.ir.program import BlockClass, ProgramGraphs
from sleepc.ir.states import StateSpec
from sleepc.ir.types import TensorType, wide_dtype
from sleepc.memory.parameters import LEARNED, Sizes, into_learned
from sleepc.passes.analysis.find_down import find_mlp
from sleepc.passes.analysis.find_queries import find_queries
from sleepc.passes.analysis.find_sites import dims
from sleepc.passes.analysis.linear_maps import LinearMap
from sleepc.passes.base import Effect, Pass
from sleepc.passes.consolidation.fast_maps import add_beside, inputs_of
from sleepc.passes.facts import AWAKE, BLOCKS, BOUNDED, CLOCKED, Fact
from sleepc.passes.lib.classes import chosen_classes, first_block
from sleepc.passes.lib.emit import Emit
from sleepc.passes.rewrite.memory import NewParam, add_to_layout

SIZES = Sizes(0, 0, 0, 0, 0)  # these parameters know theirs


def learned_maps(graph: Graph, weights: str) -> dict[str, LinearMap]:
    """The linear maps of a block that get a state: of its MLP all ("mlp") or the last one ("down"), or that which makes
    its queries ("query").
    """
    if weights == "query":
        return find_queries(graph)
    return {name: one for name, one in find_mlp(graph).items() if weights == "mlp" or name == weights}


@dataclass(frozen=True)
class AddFastMaps(Pass):
    """W z becomes W z + Dᵀ A z for linear maps of each block (`weights`): D [rank,out] a state of each row, zero
    until sleeps learn it, A [rank,in] a parameter of normal numbers of variance 1/in; so a change of D changes the
    weight by about as much. With rank 0, or one that is no less than the map's inputs, A is their scale [in], one at
    first.

    Raises UsageError for a block where they are not found, or that has more maps than have names.
    """

    layers: tuple[int, ...]
    weights: str
    rank: int
    seed: int
    name: ClassVar[str] = "add-fast-maps"
    effect: ClassVar[Effect] = "APPROXIMATE"
    requires: ClassVar[tuple[Fact, ...]] = (BLOCKS, BOUNDED, CLOCKED, AWAKE)

    def run(self, program: ProgramGraphs) -> int:
        """The number of block classes that learn."""
        names = chosen_classes(program, self.layers)
        for name in names:
            cls = program.classes[name]
            maps = learned_maps(cls.wake, self.weights)
            if not maps or not maps.keys() <= set(LEARNED):
                raise UsageError(
                    f"the block cannot learn: {_why_not(self.weights, len(maps))}",
                    where=f"block {first_block(program, name)}",
                    fix="Name other blocks with --mlps, others of their maps, or use --consolidation replay.",
                )
            new = [self._add(program, cls, part, one) for part, one in maps.items()]
            add_to_layout(program, name, new, self.seed)
            infer_types(cls.wake)
        return len(names)

    def _add(self, program: ProgramGraphs, cls: BlockClass, part: str, one: LinearMap) -> NewParam:
        graph, wide = cls.wake, wide_dtype(program.dtype)
        inputs, out = (int(dims(node)[-1]) for node in (one.x, one.call))
        rank = self.rank if self.rank < inputs else 0
        into = into_learned(part, inputs, rank)
        spec = StateSpec("fast", part, ("B", rank or inputs, out), wide, "accumulate")
        fast = graph.add_port("state", spec.name, spec.type())
        a = graph.add_port("param", into.port, TensorType(wide, into.shape(SIZES)))
        e = Emit(graph, "gradient", one.call.next)
        z = e.cast(inputs_of(e, graph, one), wide)
        read: fx.Node = e.linear(z, a) if rank else e.mul(z, a)
        add_beside(e, one, read, fast)
        cls.states = (*cls.states, spec)
        return NewParam(into.port, into.shape(SIZES), into.converted)


def _why_not(weights: str, count: int) -> str:
    if weights == "query":
        return "no linear map makes its queries and nothing else"
    return f"its MLP has {count} linear maps" if count else "no linear map is found by which its MLP comes back"
