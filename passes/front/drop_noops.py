"""Drop what does nothing in inference, and write the rest in one spelling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from sleepc.ir.graph import Graph, is_call
from sleepc.ir.levels import PLACEMENT
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.base import Effect, Pass
from sleepc.passes.facts import FLAT, FUNCTIONAL, Fact
from sleepc.passes.lib.emit import aten
from sleepc.passes.lib.values import same_type, shape_text, val

COPIES = (
    aten.clone.default,
    aten.contiguous.default,
    aten.detach.default,
    aten.alias.default,
    aten.lift_fresh_copy.default,
    aten.detach_.default,
)
CASTS = (
    aten.to.dtype,
    aten.to.device,
    aten.to.dtype_layout,
    aten.to.other,
    aten._to_copy.default,
    aten.type_as.default,
)
VIEWS = (aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.expand.default, aten.slice.Tensor)
ASSERTS = ("_assert_", "sym_constrain_range", "_assert_scalar")
SPELLINGS = {
    aten.__and__.Tensor: aten.bitwise_and.Tensor,
    aten.__or__.Tensor: aten.bitwise_or.Tensor,
    aten.new_empty.default: aten.new_zeros.default,  # unset memory may have any values: zeros
    aten.empty.memory_format: aten.zeros.default,
    aten.empty_like.default: aten.zeros_like.default,
    aten.numpy_T.default: aten.t.default,  # for more than two dimensions PyTorch will drop it; types are checked
}


@dataclass(frozen=True)
class DropNoops(Pass):
    """Drop or respell, in this order:
    1. assertions, which the verifier replaces;
    2. dropout, copies, and casts and views whose result has the type of their argument;
    3. every cast that is left becomes aten.to.dtype, so does a copy over all of another tensor; every reshape becomes
       aten.view's functional twin aten.reshape;
    4. device, layout and pin_memory arguments, which are a backend's business.
    """

    name: ClassVar[str] = "drop-noops"
    effect: ClassVar[Effect] = "EXACT"
    requires: ClassVar[tuple[Fact, ...]] = (FLAT, FUNCTIONAL)

    def run(self, program: ProgramGraphs) -> int:
        """The number of nodes dropped or respelled."""
        graph = program.embed
        count = 0
        for node in graph.calls():
            count += _drop_assertion(graph, node) or _drop_identity(graph, node) or _respell(graph, node)
        return count + graph.drop_dead()


def _drop_assertion(graph: Graph, node: fx.Node) -> int:
    if node.users or not any(mark in str(node.target) for mark in ASSERTS):
        return 0
    graph.fx.erase_node(node)
    return 1


def _drop_identity(graph: Graph, node: fx.Node) -> int:
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        return 0
    off = is_call(node, aten.dropout.default) and not node.args[2]
    if off or is_call(node, *COPIES) or (is_call(node, *CASTS, *VIEWS) and same_type(node, source)):
        node.replace_all_uses_with(source)
        graph.fx.erase_node(node)
        return 1
    return 0


def _respell(graph: Graph, node: fx.Node) -> int:
    before = (node.target, node.args, dict(node.kwargs))
    if is_call(node, *CASTS):
        node.target, node.args, node.kwargs = aten.to.dtype, (node.args[0], val(node).dtype), {}
    elif is_call(node, aten.copy.default) and shape_text(node) == shape_text(node.args[1]):  # type: ignore[arg-type]
        node.target, node.args, node.kwargs = aten.to.dtype, (node.args[1], val(node).dtype), {}
    elif is_call(node, aten.view.default, aten._unsafe_view.default):
        node.target = aten.reshape.default
    elif is_call(node, aten.mT.default):
        node.target, node.args = aten.transpose.int, (node.args[0], -2, -1)
    else:
        node.target = SPELLINGS.get(node.target, node.target)  # type: ignore[call-overload]
        node.kwargs = {k: v for k, v in node.kwargs.items() if k not in PLACEMENT}
    return int(before != (node.target, node.args, dict(node.kwargs)))
