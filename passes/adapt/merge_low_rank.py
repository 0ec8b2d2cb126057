"""LoRA matrices are merged into the weights next to them."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from sleepc.errors import SleepcError
from sleepc.ir.graph import Graph, Port, is_call
from sleepc.ir.infer import infer_types
from sleepc.ir.parameters import block_key
from sleepc.ir.program import BlockClass, ProgramGraphs
from sleepc.ir.weights import HeldTensor, Param
from sleepc.passes.adapt.add_low_rank import LOW_A, LOW_B, maps_of
from sleepc.passes.base import Effect, Pass
from sleepc.passes.consolidation.learning import learn_anew
from sleepc.passes.facts import SLEEPS, Fact
from sleepc.passes.lib.emit import aten


@dataclass
class Rounding:
    """Sums over all merged maps: the squares of what they change, and of the difference between the merged weights and
    weights and maps as they are run.
    """

    wanted: float = 0.0
    lost: float = 0.0

    @property
    def share(self) -> float:
        """How much was lost, in the Frobenius norm: 0 for nothing, 1 for as much as there was, or more."""
        return math.sqrt(self.lost / self.wanted) if self.wanted else 0.0


@dataclass(frozen=True)
class MergeLowRank(Pass):
    """W x + B A x becomes (W + B A) x: computed in float64 and rounded once, to the dtype that W is run in. A weight
    next to which B is zero is left alone, and a weight that several ports share becomes one for each. `rounding` gets
    what that takes from the maps.
    """

    rounding: Rounding = field(default_factory=Rounding, compare=False)
    name: ClassVar[str] = "merge-low-rank"
    effect: ClassVar[Effect] = "ROUNDING"
    requires: ClassVar[tuple[Fact, ...]] = (SLEEPS,)

    def run(self, program: ProgramGraphs) -> int:
        """The number of parameter ports that lost their maps."""
        shared = _shared(program)
        count = 0
        for name, cls in program.classes.items():
            ports = low_rank_ports(cls)
            for port in ports:
                before = [block.params for block in program.layout if block.cls == name]
                _merge_values(program, name, port, shared, self.rounding)
                after = [block.params for block in program.layout if block.cls == name]
                _merge_in_encoder(program, port, list(zip(before, after, strict=True)))
                for graph in cls.graphs():
                    _drop_maps(graph, (port, port + LOW_A, port + LOW_B))
            count += len(ports)
            if ports:
                for graph in cls.graphs():
                    infer_types(graph)
        if count:
            learn_anew(program)
        return count


def low_rank_ports(cls: BlockClass) -> list[str]:
    """The ports of a class that have LoRA matrices."""
    ports = cls.wake.ports("param")
    return [port for port in ports if port + LOW_A in ports and port + LOW_B in ports]


def _shared(program: ProgramGraphs) -> set[str]:
    """Parameters that more than one port reads."""
    keys = Counter(key for block in program.layout for key in block.params.values())
    keys.update(key for graph in (program.embed, program.head) for key in graph.ports("param"))
    return {key for key, count in keys.items() if count > 1}


def _merge_values(program: ProgramGraphs, name: str, port: str, shared: set[str], rounding: Rounding) -> None:
    """W + B A for every block of the class."""
    cls = program.classes[name]
    flipped = maps_of(cls, port)[0].flipped
    dtype = cls.wake.ports("param")[port].meta["type"].dtype
    for i, block in enumerate(program.layout):
        if block.cls != name:
            continue
        keys = dict(block.params)
        a, b = (program.params.pop(keys.pop(port + end)) for end in (LOW_A, LOW_B))
        merged = _merged(program.params[keys[port]], a, b, dtype, rounding, flipped=flipped)
        if merged is not None:
            if keys[port] in shared:
                keys[port] = block_key(i, f"{port}.merged")
            program.params[keys[port]] = HeldTensor(merged)
        program.layout[i] = replace(block, params=keys)


def _merged(
    weight: Param, a: Param, b: Param, dtype: torch.dtype, rounding: Rounding, *, flipped: bool
) -> torch.Tensor | None:
    """The sum, or None if there is nothing to add."""
    w, left, right = (p.materialise().detach().double() for p in (weight, b, a))
    if not left.any():
        return None
    product = left @ right
    product = product.t() if flipped else product
    merged = (w + product).to(dtype)
    rounding.wanted += float(product.square().sum())
    rounding.lost += float((merged.double() - w.to(dtype).double() - product).square().sum())
    return merged.contiguous()


def _merge_in_encoder(program: ProgramGraphs, port: str, keys: list[tuple[dict[str, str], dict[str, str]]]) -> None:
    """The same in the graph that makes soft tokens, of blocks whose parameters had `keys` before, and have them now."""
    if program.encode is None:
        return
    step = program.encode.step
    for before, after in keys:
        _drop_maps(step, (before[port], before[port + LOW_A], before[port + LOW_B]))
        node = step.ports("param").get(before[port])
        if node is not None:
            node.meta["port"] = Port("param", after[port])
    infer_types(step)


def _drop_maps(graph: Graph, names: tuple[str, str, str]) -> None:
    """Let what reads W x + B A x read W x, and drop the maps' ports; `names` are those of W, A and B."""
    ports, (port, low_a, low_b) = graph.ports("param"), names
    if port not in ports or low_b not in ports:
        return
    for product in list(ports[low_b].users):
        (total,) = product.users
        if not is_call(total, aten.add.Tensor):
            raise SleepcError(f"the LoRA matrices of {port} are not added to anything", where=graph.name)
        total.replace_all_uses_with(total.args[0])  # type: ignore[arg-type]
    graph.drop_dead()
    for name in (low_b, low_a):
        graph.fx.erase_node(ports[name])
