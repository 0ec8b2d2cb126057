"""In-place operators become their functional counterparts, if nothing else shares the memory that they write to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._ops import OpOverload

from sleepc.errors import SleepcError
from sleepc.ir.levels import makes_view, mutates
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.base import Effect, Pass
from sleepc.passes.facts import FLAT, Fact
from sleepc.passes.lib.emit import aten

# What may give back its argument's memory, though its schema does not say so.
UNDECLARED = (aten.dropout.default, aten.type_as.default, aten._unsafe_view.default)


class SharedMemory(SleepcError):
    """An operator writes through a view, or to memory that others read: only PyTorch itself can take it apart."""


@dataclass(frozen=True)
class MakeFunctional(Pass):
    """Respell every operator that writes to an argument; later readers of the argument read the result.

    Raises SharedMemory if one is left.
    """

    name: ClassVar[str] = "make-functional"
    effect: ClassVar[Effect] = "EXACT"
    requires: ClassVar[tuple[Fact, ...]] = (FLAT,)

    def run(self, program: ProgramGraphs) -> int:
        """The number of operators respelled."""
        order = {node: i for i, node in enumerate(program.embed.fx.nodes)}
        writers = [node for node in program.embed.calls() if mutates(node.target)]
        for node in writers:
            _respell(node, order)
        return len(writers)


def _respell(node: fx.Node, order: dict[fx.Node, int]) -> None:
    twin, written = _twin(node.target), node.args[0]
    if twin is None or not isinstance(written, fx.Node) or _is_shared(written, node, order):
        raise _shared(node)
    if not _gives_the_same(twin, node):
        raise _shared(node)
    node.target = twin
    for user in list(written.users):
        if order[user] > order[node]:
            user.replace_input_with(written, node)


def _shared(node: fx.Node) -> SharedMemory:
    return SharedMemory(f"{node.target} writes to memory that others read", where=str(node.meta.get("source", "")))


def _twin(target: Any) -> OpOverload | None:
    """aten.add_.Tensor -> aten.add.Tensor."""
    assert isinstance(target, OpOverload)
    packet = getattr(aten, target._schema.name.removeprefix("aten::").removesuffix("_"), None)
    found = getattr(packet, target._overloadname, None)
    return found if isinstance(found, OpOverload) and not mutates(found) else None


def _gives_the_same(twin: OpOverload, node: fx.Node) -> bool:
    """In place, a result has the dtype and shape of what is written to; the twin may widen them."""
    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda n: n.meta["val"])
    with enable_python_dispatcher():  # as exported values were made
        given, made = node.meta["val"], twin(*args, **kwargs)
    return given.dtype == made.dtype and str(given.shape) == str(made.shape)


def _is_view(node: fx.Node) -> bool:
    """May the value share memory with an argument?"""
    if node.target in UNDECLARED:
        return True
    source = node.all_input_nodes[0] if node.all_input_nodes else node
    if not isinstance(node.target, OpOverload) and isinstance(source.target, OpOverload):
        return makes_view(source.target)  # one of several results
    return makes_view(node.target)


def _is_shared(written: fx.Node, writer: fx.Node, order: dict[fx.Node, int]) -> bool:
    """Is there another value with the same memory that is read after it is written, or that a caller holds?"""
    base = written
    while base.op == "call_function" and _is_view(base):
        base = base.all_input_nodes[0]
    if base.op != "call_function":
        return True
    same = {base}
    for node in sorted(written.graph.nodes, key=order.__getitem__):
        if order[node] < order[writer] and _is_view(node) and same.intersection(node.all_input_nodes):
            same.add(node)
    return any(order[user] > order[writer] for value in same - {written} for user in value.users)
