"""RMS norms, found where they are spelled out: x rsqrt(mean x^2 + eps) times a weight becomes one call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from sleepc.ir.graph import Graph, is_call
from sleepc.ir.infer import infer_types
from sleepc.ir.levels import aten
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.base import Effect, Pass
from sleepc.passes.facts import SLEEPS, Fact
from sleepc.passes.lib.emit import Emit
from sleepc.passes.lib.match import factors, normed, through


@dataclass(frozen=True)
class FindRmsNorm(Pass):
    """`sleepc.rms_norm` (Zhang and Sennrich, arXiv 1910.07467) for the norms of one dtype, over the last dimension."""

    name: ClassVar[str] = "find-rms-norm"
    effect: ClassVar[Effect] = "EXACT"
    requires: ClassVar[tuple[Fact, ...]] = (SLEEPS,)

    def run(self, program: ProgramGraphs) -> int:
        """The number of norms found."""
        return sum(_find(graph) for graph in program.graphs())


def _find(graph: Graph) -> int:
    count = 0
    for node in graph.calls():
        found = _norm(node) if is_call(node, aten.mul.Tensor) else None
        if found is not None:
            x, weight, epsilon = found
            emit = Emit(graph, node.meta.get("source", ""), node)
            norm = emit.ours("rms_norm", x, weight, eps=epsilon)
            norm.meta["type"] = node.meta["type"]  # one may be of what another gives
            node.replace_all_uses_with(norm)
            count += 1
    if count:
        graph.drop_dead()
        infer_types(graph)
    return count


def _norm(node: fx.Node) -> tuple[fx.Node, fx.Node, float] | None:
    """x, weight [d] and eps of a product that is a norm."""
    for scaled, weight in factors(node):
        found = normed(through(scaled))
        if found is None or not isinstance(weight, fx.Node):
            continue
        kinds = [each.meta["type"] for each in (node, weight, found[0])]
        if kinds[1].dims == kinds[0].dims[-1:] and len({kind.dtype for kind in kinds}) == 1:
            return found[0], weight, found[1]
    return None
