"""Attention that is asked twice with the same queries and keys, for other values, is one with wider values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from sleepc.ir.graph import Graph, is_call
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.base import Effect, Pass
from sleepc.passes.facts import FLAT, FUNCTIONAL, MASKS_KNOWN, Fact
from sleepc.passes.lib.emit import aten
from sleepc.passes.lib.values import FlatEmit, val


@dataclass(frozen=True)
class JoinAttention(Pass):
    """attention(q, k, v1) and attention(q, k, v2) -> parts of attention(q, k, [v1 | v2]) (Differential Transformer,
    arXiv 2410.05258: a layer then has one KV window), if v2 does not need what the first one gives.
    """

    name: ClassVar[str] = "join-attention"
    effect: ClassVar[Effect] = "ROUNDING"
    requires: ClassVar[tuple[Fact, ...]] = (FLAT, FUNCTIONAL, MASKS_KNOWN)

    def run(self, program: ProgramGraphs) -> int:
        """The number of attention operations that went into others."""
        graph, first, joined = program.embed, dict[Any, fx.Node](), 0
        for node in [n for n in graph.calls() if is_call(n, torch.ops.sleepc.attention.default)]:
            q, k, v, *rest = node.args
            asked = (q, k, *rest, *sorted(node.kwargs.items()), str(val(v).shape[1]))  # type: ignore[arg-type]
            other = first.setdefault(asked, node)
            if other is not node and _stands_before(graph, v, other):
                first[asked] = _join(graph, other, node)
                joined += 1
        return joined


def _stands_before(graph: Graph, value: Any, node: fx.Node) -> bool:
    order = {each: i for i, each in enumerate(graph.fx.nodes)}
    return order[value] < order[node]


def _join(graph: Graph, first: fx.Node, second: fx.Node) -> fx.Node:
    """One attention in place of two: the joined one."""
    values: list[Any] = [first.args[2], second.args[2]]
    e = FlatEmit(graph, str(first.meta.get("source", "")), first)
    both = e.call(aten.cat.default, values, 3)
    out = e.call(first.target, *first.args[:2], both, *first.args[3:], **first.kwargs)
    width = int(val(values[0]).shape[3])
    parts = [e.call(aten.slice.Tensor, out, 3, 0, width), e.call(aten.slice.Tensor, out, 3, width, 2**63 - 1)]
    for node, part in zip((first, second), parts, strict=True):
        node.replace_all_uses_with(part)
        graph.fx.erase_node(node)
    return out
