"""Numbers that a mask adds to the scores of a key, for all queries, become a channel of that key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from sleepc.ir.graph import is_call
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.analysis.dependence import find_dependence
from sleepc.passes.analysis.read_mask import MASKED
from sleepc.passes.base import Effect, Pass
from sleepc.passes.facts import FLAT, FUNCTIONAL, REAL, Fact
from sleepc.passes.lib.emit import aten
from sleepc.passes.lib.values import FlatEmit, shape_text, val


@dataclass(frozen=True)
class PullKeyNumbers(Pass):
    """attention(q, k, v, mask), mask = b where a key is seen, b [B,Hkv,1,T] made of the tokens ->
    attention([q | 1], [k | b / scale], v, seen): scale (q k + b / scale) = scale q k + b (Doge's dynamic mask).
    """

    name: ClassVar[str] = "pull-key-numbers"
    effect: ClassVar[Effect] = "ROUNDING"
    requires: ClassVar[tuple[Fact, ...]] = (FLAT, FUNCTIONAL, REAL)

    def run(self, program: ProgramGraphs) -> int:
        """The number of attention operations whose keys have a channel more."""
        graph, count = program.embed, 0
        tokens = find_dependence(graph, ("tokens",), ("positions",)).tokens
        for node in [n for n in graph.calls() if is_call(n, torch.ops.sleepc.attention.default)]:
            mask: Any = node.args[3]
            filled = _once_by_head(mask, node.args[1]) if mask in tokens else None
            if filled is not None and is_call(filled, aten.masked_fill.Scalar) and not node.kwargs.get("softcap"):
                numbers, hidden, value = filled.args
                by_key = _by_key(numbers)
                if by_key is not None and hidden not in tokens and value <= MASKED:  # type: ignore[operator]
                    _pull(FlatEmit(graph, str(node.meta.get("source", "")), node), node, by_key, hidden)
                    count += 1
        graph.drop_dead()
        return count


def _once_by_head(mask: fx.Node, keys: Any) -> fx.Node | None:
    """The mask [B,Hkv,T,T] before each of its heads was repeated in place, as those of keys are; None if it was not."""
    shape = shape_text(mask)
    while is_call(mask, aten.reshape.default, aten.expand.default, aten.unsqueeze.default):
        if is_call(mask, aten.unsqueeze.default) and mask.args[1] not in (2, -3):
            return None
        mask = mask.all_input_nodes[0]
    found = shape_text(mask)
    alike = len(found) == 4 and found[1] == shape_text(keys)[1] and found[2:] == shape[2:]
    return mask if alike else None


def _by_key(numbers: Any) -> fx.Node | None:
    """The numbers [B,Hkv,1,T] that are the same for all queries; None if they are not."""
    source = numbers.args[0] if is_call(numbers, aten.expand.default) else numbers
    shape = shape_text(source)
    return source if len(shape) == 4 and shape[2] == "1" else None


def _pull(e: FlatEmit, node: fx.Node, numbers: fx.Node, hidden: Any) -> None:
    q, k, v, _, *sinks = node.args
    scale: Any = node.kwargs["scale"]
    channel = e.mul(e.transpose(numbers, 2, 3), 1 / scale)
    one = e.call(aten.new_ones.default, v, [1, 1, 1, 1])
    heads = int(val(q).shape[1])  # type: ignore[arg-type]
    ones = e.call(aten.expand.default, one, [e.size(q, 0), heads, e.size(q, 2), 1])  # type: ignore[arg-type]
    q, k = e.call(aten.cat.default, [q, ones], 3), e.call(aten.cat.default, [k, channel], 3)
    node.args = (q, k, v, e.call(aten.logical_not.default, hidden), *sinks)
