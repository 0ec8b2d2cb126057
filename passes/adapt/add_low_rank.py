"""LoRA matrices next to a block's own linear layers: they adapt a model's weights with few parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from sleepc.errors import UsageError
from sleepc.ir.graph import Graph
from sleepc.ir.infer import infer_types
from sleepc.ir.program import BlockClass, ProgramGraphs
from sleepc.ir.types import TensorType
from sleepc.memory.parameters import normal, zeros
from sleepc.passes.analysis.linear_maps import LinearMap, linear_maps
from sleepc.passes.base import Effect, Pass
from sleepc.passes.consolidation.learning import learn_anew
from sleepc.passes.facts import SLEEPS, Fact
from sleepc.passes.lib.emit import Emit
from sleepc.passes.rewrite.memory import NewParam, add_to_layout

LOW_A, LOW_B = ".low_a", ".low_b"


def low_rank_keys(program: ProgramGraphs) -> dict[str, str]:
    """Keys of a program's LoRA matrices, B's of all pairs by A's."""
    ports = ((block.params, port.removesuffix(LOW_A)) for block in program.layout for port in block.params)
    return {keys[port + LOW_A]: keys[port + LOW_B] for keys, port in ports if port + LOW_A in keys and port in keys}


@dataclass(frozen=True)
class AddLowRank(Pass):
    """W x becomes W x + B A x for every linear map of a block's own weights (arXiv 2106.09685): A [rank, in] random,
    B [out, rank] zero, so nothing changes until B does.

    A parameter that several calls multiply by gets one pair. Left alone are embeddings and head, what the conversion
    added, and matrices that are read in another way too, such as the 3-D weights of batched experts. The maps are
    computed in the weight's dtype; their own values are kept as memories' are.
    """

    rank: int
    seed: int
    name: ClassVar[str] = "add-low-rank"
    effect: ClassVar[Effect] = "EXACT"
    requires: ClassVar[tuple[Fact, ...]] = (SLEEPS,)

    def run(self, program: ProgramGraphs) -> int:
        """The number of parameter ports that got maps."""
        if self.rank < 1:
            raise UsageError(f"the rank is {self.rank}, and must be at least 1", where="--rank", fix="Give 1 or more.")
        count = 0
        for name, cls in program.classes.items():
            new = [param for port in self._ports(program, name) for param in self._add(cls, port)]
            if new:
                add_to_layout(program, name, new, self.seed)
                _add_to_encoder(program, name, [param.name for param in new])
                for graph in cls.graphs():
                    infer_types(graph)
            count += len(new) // 2
        if count:
            learn_anew(program)
        return count

    def _ports(self, program: ProgramGraphs, name: str) -> list[str]:
        """The ports of a class that hold a linear map of the model's own, and have no LoRA matrices yet."""
        cls = program.classes[name]
        new = {p for b in program.layout if b.cls == name for p, key in b.params.items() if program.params[key].new}
        ports = cls.wake.ports("param")
        return [p for p in ports if p not in new and p + LOW_A not in ports and maps_of(cls, p)]

    def _add(self, cls: BlockClass, port: str) -> tuple[NewParam, NewParam]:
        """Matrices next to one port, in every graph that has it."""
        type_: TensorType = cls.wake.ports("param")[port].meta["type"]
        rows, columns = (int(d) for d in type_.dims)
        into, out = (rows, columns) if maps_of(cls, port)[0].flipped else (columns, rows)
        new = (
            NewParam(port + LOW_A, (self.rank, into), normal),
            NewParam(port + LOW_B, (out, self.rank), zeros),
        )
        for graph in cls.graphs():
            node = graph.ports("param").get(port)
            if node is not None:
                uses = linear_maps(node)
                a, b = (graph.add_port("param", p.name, TensorType(type_.dtype, p.shape)) for p in new)
                for use in uses:
                    _add_to(graph, use, a, b)
        return new


def _add_to_encoder(program: ProgramGraphs, name: str, new: list[str]) -> None:
    """The same, of the blocks of a class, in the graph that makes soft tokens, where weights have their keys as names.

    Raises UsageError for a weight that several blocks share: there it has one port, and they have matrices each.
    """
    if program.encode is None:
        return
    step = program.encode.step
    for block in program.layout:
        for low_a in new if block.cls == name else ():
            if low_a.endswith(LOW_B):
                continue
            port = low_a.removesuffix(LOW_A)
            node = step.ports("param").get(block.params[port])
            if node is None:
                continue
            if sum(block.params[port] in other.params.values() for other in program.layout) > 1:
                raise UsageError(
                    "blocks that share a weight get LoRA matrices each, and soft tokens are made with one weight",
                    where=block.params[port],
                    fix="Train without --rank.",
                )
            uses = linear_maps(node)
            keys = [block.params[port + end] for end in (LOW_A, LOW_B)]
            a, b = (
                step.add_port("param", key, TensorType(node.meta["type"].dtype, program.params[key].shape))
                for key in keys
            )
            for use in uses:
                _add_to(step, use, a, b)
    infer_types(step)


def maps_of(cls: BlockClass, port: str) -> list[LinearMap]:
    """Every use of a port in a class's graphs as a linear map; empty if a graph reads it in another way."""
    found = []
    for graph in cls.graphs():
        node = graph.ports("param").get(port)
        if node is not None and node.users:
            uses = linear_maps(node)
            if not uses:
                return []
            found += uses
    return found


def _add_to(graph: Graph, use: LinearMap, a: fx.Node, b: fx.Node) -> None:
    """One call: what reads its result reads the sum from now on."""
    e = Emit(graph, "low-rank", use.call.next)
    total = e.add(use.call, e.linear(e.linear(use.x, a), b))
    use.call.replace_all_uses_with(total, delete_user_cb=lambda user: user is not total)
