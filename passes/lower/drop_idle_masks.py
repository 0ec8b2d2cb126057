"""What is set to 0 at padding only to be written into slots needs no mask: padding has no slot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from sleepc.ir.graph import Graph, is_call
from sleepc.ir.infer import infer_types
from sleepc.ir.levels import aten
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.types import TensorType
from sleepc.passes.analysis.givers import givers, origin
from sleepc.passes.base import Effect, Pass
from sleepc.passes.facts import SLEEPS, Fact
from sleepc.passes.lib.match import factors

ours = torch.ops.sleepc
MOVED = (aten.transpose.int, aten.to.dtype)


@dataclass(frozen=True)
class DropIdleMasks(Pass):
    """Remove products with a mask that are only written into slots, which are -1 where the mask is not."""

    name: ClassVar[str] = "drop-idle-masks"
    effect: ClassVar[Effect] = "EXACT"
    requires: ClassVar[tuple[Fact, ...]] = (SLEEPS,)

    def run(self, program: ProgramGraphs) -> int:
        """The number of products taken away."""
        return sum(_drop(graph, giver) for graph, giver in givers(program) if giver is not None)


def _drop(graph: Graph, giver: Graph) -> int:
    count = 0
    for node in graph.calls():
        for x, mask in factors(node) if is_call(node, aten.mul.Tensor) else ():
            if _is_kept(x, mask, node) and _only_written(node, _mask(mask, giver), giver):
                node.replace_all_uses_with(x)
                count += 1
                break
    if count:
        graph.drop_dead()
        infer_types(graph)
    return count


def _is_kept(x: Any, mask: Any, product: fx.Node) -> bool:
    """Is the product x where the mask is?"""
    if not (isinstance(x, fx.Node) and isinstance(mask, fx.Node)):
        return False
    type_ = mask.meta["type"]  # a size in the place of a number has no tensor's type
    return isinstance(type_, TensorType) and type_.dtype == torch.bool and x.meta["type"] == product.meta["type"]


def _mask(node: fx.Node, giver: Graph) -> fx.Node:
    """Who is real [B, T], in the graph that gives it; the node itself if its dimensions tell of more."""
    while is_call(node, aten.unsqueeze.default):
        node = node.args[0]  # type: ignore[assignment]
    return origin(node, giver)


def _only_written(node: fx.Node, mask: fx.Node, giver: Graph) -> bool:
    """Do all that read a value write it, in the end, into slots that are -1 where the mask is not?"""
    return bool(node.users) and all(
        (is_call(user, ours.write_slots.default) and user.args[1] is node and _padding(user.args[2], giver) is mask)
        or (is_call(user, *MOVED) and _only_written(user, mask, giver))
        for user in node.users
    )


def _padding(slots: Any, giver: Graph) -> fx.Node | None:
    """The mask [B, T] outside of which slots are negative: those of negative positions are."""
    node = origin(slots, giver)
    while is_call(node, ours.window_slots.default):
        node = node.args[0]  # type: ignore[assignment]
    negative = is_call(node, aten.where.ScalarOther) and isinstance(node.args[2], int) and node.args[2] < 0
    return node.args[0] if negative else None  # type: ignore[return-value]
