"""The model's own convolutions and recurrences go on where the call before ended, and padding is not for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import fx

from sleepc.ir.infer import infer_types
from sleepc.ir.program import BlockClass, ProgramGraphs
from sleepc.ir.states import StateSpec
from sleepc.passes.analysis.find_sites import dims, recurrences_of
from sleepc.passes.base import Effect, Pass
from sleepc.passes.facts import AWAKE, BLOCKS, CLOCKED, Fact
from sleepc.passes.lib.classes import embed_port
from sleepc.passes.lib.emit import Emit


@dataclass(frozen=True)
class CarryStates(Pass):
    """short_conv(x, w, zeros, T) -> short_conv(x, w, tail, lengths), and delta_rule(.., zeros) -> delta_rule(.., own),
    whose keys and gates are 0 at padding (semantics.md, sections 3 and 6).

    Every token writes them; of sleeps only recurrent passes do. The states' names are those of `recurrences_of`.
    """

    name: ClassVar[str] = "carry-states"
    effect: ClassVar[Effect] = "EXACT"
    requires: ClassVar[tuple[Fact, ...]] = (BLOCKS, CLOCKED, AWAKE)

    def run(self, program: ProgramGraphs) -> int:
        """The number of convolutions and recurrences in block classes."""
        return sum(_carry(program, cls) for cls in program.classes.values())


def _carry(program: ProgramGraphs, cls: BlockClass) -> int:
    graph, results = cls.wake, cls.wake.results()
    found = recurrences_of(graph)
    for name, node in found.items():
        carry = _convolution if name.startswith("tail") else _recurrence
        spec = carry(program, cls, node, name)
        cls.states = (*cls.states, spec)
        results[name] = Emit(graph, str(node.meta.get("source", ""))).item(node, 1)
    if found:
        graph.set_returns(results)
        graph.drop_dead()
        infer_types(graph)
    return len(found)


def _convolution(program: ProgramGraphs, cls: BlockClass, node: fx.Node, name: str) -> StateSpec:
    x, weight, before, _ = node.all_input_nodes
    spec = StateSpec("tail", name, ("B", *dims(before)[1:]), before.meta["type"].dtype, "overwrite")
    tail = cls.wake.add_port("state", spec.name, spec.type())
    node.args = (x, weight, tail, embed_port(program, cls.wake, "lengths"))
    return spec


def _recurrence(program: ProgramGraphs, cls: BlockClass, node: fx.Node, name: str) -> StateSpec:
    args: Any = node.args
    q, k, v, g, beta, (before,) = args
    e = Emit(cls.wake, str(node.meta.get("source", "")), node)
    real = e.unsqueeze(embed_port(program, cls.wake, "real"), 1)
    each = e.unsqueeze(real, -1)
    g = e.mul(g, each if len(dims(g)) == len(dims(k)) else real)
    k, beta = e.mul(k, each), e.mul(beta, real)
    spec = StateSpec(
        "own", name.removeprefix("own."), ("B", *dims(before)[1:]), before.meta["type"].dtype, "accumulate"
    )
    node.args = (q, k, v, g, beta, [cls.wake.add_port("state", spec.name, spec.type())])
    return spec
