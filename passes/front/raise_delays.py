"""What is read one token late becomes a convolution, which carries it from call to call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from sleepc.ir.graph import is_call
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.analysis.dependence import find_dependence
from sleepc.passes.base import Effect, Pass
from sleepc.passes.facts import FLAT, FUNCTIONAL, REAL, Fact
from sleepc.passes.lib.emit import aten
from sleepc.passes.lib.values import FlatEmit, shape_text, val


@dataclass(frozen=True)
class RaiseDelays(Pass):
    """cat([a, x[:, :-1]], 1) -> short_conv(x - a, [1 0]) + a, x [B,T,d] made of the tokens and a [B,1,d] of weights
    alone: what stands before the first token (values of Zaya).
    """

    name: ClassVar[str] = "raise-delays"
    effect: ClassVar[Effect] = "ROUNDING"
    requires: ClassVar[tuple[Fact, ...]] = (FLAT, FUNCTIONAL, REAL)

    def run(self, program: ProgramGraphs) -> int:
        """The number of values that are read late."""
        graph, count = program.embed, 0
        tokens = find_dependence(graph, ("tokens",), ("positions",)).tokens
        for node in list(graph.calls()):
            found = _late(node)
            if found is not None and found[0] not in tokens and found[1] in tokens:
                e = FlatEmit(graph, str(node.meta.get("source", "")), node)
                node.replace_all_uses_with(_delayed(e, *found))
                count += 1
        if count:
            graph.drop_dead()
        return count


def _late(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """a and x of cat([a, x[:, :-1]], 1)."""
    parts: Any = node.args[0] if is_call(node, aten.cat.default) and node.args[1:] in ((1,), (-2,)) else ()
    if len(parts) != 2 or not is_call(parts[1], aten.slice.Tensor) or len(shape_text(node)) != 3:
        return None
    first, (x, *where) = parts[0], parts[1].args
    fits = shape_text(first)[1] == "1" and shape_text(x)[2] == shape_text(first)[2]
    return (first, x) if fits and where == [1, 0, -1] and val(x).is_floating_point() else None


def _delayed(e: FlatEmit, first: fx.Node, x: fx.Node) -> fx.Node:
    width = int(val(x).shape[2])
    one, zero = (e.call(make, x, [width, 1]) for make in (aten.new_ones.default, aten.new_zeros.default))
    weight = e.call(aten.cat.default, [one, zero], 1)
    rows, tokens = e.size(x, 0), e.size(x, 1)
    tail = e.call(aten.new_zeros.default, x, [rows, width, 1])
    lengths = e.call(aten.new_full.default, x, [rows], tokens, dtype=torch.int64)
    return e.add(e.item(e.ours("short_conv", e.sub(x, first), weight, tail, lengths), 0), first)
