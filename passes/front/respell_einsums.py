"""Sums of products over letters become matrix products, the one spelling that attention is looked for in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import fx

from sleepc.ir.graph import Graph, is_call
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.base import Effect, Pass
from sleepc.passes.facts import FLAT, FUNCTIONAL, Fact
from sleepc.passes.lib.emit import aten
from sleepc.passes.lib.values import FlatEmit


@dataclass(frozen=True)
class RespellEinsums(Pass):
    """Replace einsum(a, b) by permute(matmul(permute(a), permute(b))) if exactly one letter is summed over, each of
    a and b has one letter of its own, and all others stand for rows of both.
    """

    name: ClassVar[str] = "respell-einsums"
    effect: ClassVar[Effect] = "ROUNDING"
    requires: ClassVar[tuple[Fact, ...]] = (FLAT, FUNCTIONAL)

    def run(self, program: ProgramGraphs) -> int:
        """The number of products spelled anew."""
        graph = program.embed
        return sum(_respell(graph, node) for node in graph.calls() if is_call(node, aten.einsum.default))


def _respell(graph: Graph, node: fx.Node) -> int:
    terms, _, result = str(node.args[0]).replace(" ", "").partition("->")
    first, _, second = terms.partition(",")  # a third operand leaves a comma in `second`
    letters = (first, second, result)
    if not all(each.isalpha() and len(set(each)) == len(each) for each in letters):
        return 0  # an ellipsis, a diagonal, or no result spelled out
    rows = [c for c in result if c in first and c in second]
    left, right = ([c for c in each if c in result and c not in rows] for each in (first, second))
    summed = [c for c in first if c in second and c not in result]
    if not (rows and len(left) == len(right) == len(summed) == 1):
        return 0
    if {*first} != {*rows, *left, *summed} or {*second} != {*rows, *right, *summed}:
        return 0
    e = FlatEmit(graph, str(node.meta.get("source", "")), node)
    operands: Any = node.args[1]
    a = _permuted(e, operands[0], first, [*rows, *left, *summed])
    b = _permuted(e, operands[1], second, [*rows, *summed, *right])
    product = _permuted(e, e.call(aten.matmul.default, a, b), "".join([*rows, *left, *right]), list(result))
    node.replace_all_uses_with(product)
    graph.fx.erase_node(node)
    return 1


def _permuted(e: FlatEmit, x: fx.Node, letters: str, wanted: list[str]) -> fx.Node:
    """x, whose dimensions have `letters`, with its dimensions as `wanted`; two that change places are transposed."""
    order = [letters.index(c) for c in wanted]
    moved = [i for i, at in enumerate(order) if i != at]
    if not moved:
        return x
    return e.transpose(x, *moved) if len(moved) == 2 else e.call(aten.permute.default, x, order)
