"""A graph as a list of calls, compiled once: every step is one operator call on a list of values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from operator import itemgetter
from typing import Any

import torch
from torch import fx

from sleepc.ir.graph import Graph
from sleepc.ir.levels import aten
from sleepc.ir.types import TensorType

# Operators of PyTorch by its direct bindings: for one token, most of a step is the way to the kernel.
_DIRECT = """
    add.Scalar add.Tensor arange.default cat.default clamp.default clone.default cos.default eq.Scalar eq.Tensor
    exp.default ge.Scalar ge.Tensor gt.Scalar gt.Tensor index_select.default le.Scalar le.Tensor logical_and.default
    logical_not.default lt.Scalar lt.Tensor matmul.default mean.dim mul.Tensor neg.default pow.Tensor_Scalar
    reshape.default round.default rsqrt.default scatter.src sigmoid.default sin.default sort.stable squeeze.dim
    sub.Scalar sub.Tensor sum.dim_IntList transpose.int unsqueeze.default where.ScalarOther where.self
    zeros_like.default"""
DIRECT: dict[Any, Callable[..., Any]] = {
    getattr(getattr(aten, name), overload): getattr(torch, name)
    for name, overload in (each.split(".") for each in _DIRECT.split())
}
DIRECT |= {
    aten.expand.default: torch.Tensor.expand,
    aten.expand_as.default: torch.Tensor.expand_as,
    aten.linear.default: torch.nn.functional.linear,
    aten.silu.default: torch.nn.functional.silu,
    aten.sym_size.int: torch.Tensor.size,
    aten.to.dtype: torch.Tensor.to,
}
FACTORIES = ("arange", "full", "zeros", "ones", "empty", "scalar_tensor")


class Executor:
    """Runs a graph: named values in, named results out. Values are freed after their last use.

    Values lie in a list: those of ports and calls first, then the literals, so that the arguments of a call are one
    selection from the list.

    With `folds`, what follows from whole numbers among the constants alone is a port, too, by the name of its node:
    `folded` computes it once for the blocks that share the graph.
    """

    def __init__(
        self,
        graph: Graph,
        functions: Mapping[Any, Callable[..., Any]],
        device: torch.device,
        *,
        folds: bool = False,
    ) -> None:
        self.graph, self.functions, self.device = graph, {**DIRECT, **functions}, device
        self.slots: dict[fx.Node, int] = {}
        for i, node in enumerate(graph.fx.nodes):
            self.slots[node] = self.slots[node.args[0]] if _is_idle(node) else i
        self.values: list[Any] = [None] * len(graph.fx.nodes)
        self.ports = {name: self.slots[node] for name, node in graph.ports().items()}
        self.results = {name: self.slots[node] for name, node in graph.results().items()}
        last = {self.slots[source]: node for node in graph.fx.nodes for source in node.all_input_nodes}
        known = known_at_first(graph) if folds else set()
        calls = [(node, self._call(node, last)) for node in graph.calls() if not _is_idle(node)]
        self.calls = [call for node, call in calls if node not in known]
        self._first = [(target, args, out) for node, (target, args, out, _) in calls if node in known]
        read = {source for node, _ in calls if node not in known for source in node.all_input_nodes}
        self._known = {f"{graph.name}.{node.name}": self.slots[node] for node in known & read}

    def _call(self, node: fx.Node, last: Mapping[int, fx.Node]) -> Any:
        target: Any = self.functions.get(node.target, node.target)
        kwargs = dict(node.kwargs)
        if getattr(getattr(node.target, "overloadpacket", None), "__name__", "") in FACTORIES:
            kwargs["device"] = self.device
        used = {self.slots[source] for source in node.all_input_nodes}
        free = [slot for slot in used if last[slot] is node]
        if any(_has_nodes(value) for value in kwargs.values()):
            target, args = _by_name(target, tuple(kwargs), len(node.args)), (*node.args, *kwargs.values())
        else:
            target, args = partial(target, **kwargs) if kwargs else target, node.args
        return target, self._getter(args), self.slots[node], free

    def _getter(self, args: tuple[Any, ...]) -> Callable[[list[Any]], tuple[Any, ...]]:
        """The arguments as a function of the values."""
        if any(isinstance(a, (list, tuple)) and _has_nodes(a) for a in args):
            parts = [self._part(a) for a in args]
            return lambda values: tuple([part(values) for part in parts])
        slots = [self._slot(a) for a in args]
        if len(slots) == 1:
            (only,) = slots
            return lambda values: (values[only],)
        return itemgetter(*slots) if slots else lambda values: ()

    def _part(self, arg: Any) -> Callable[[list[Any]], Any]:
        if isinstance(arg, (list, tuple)) and _has_nodes(arg):
            inner = self._getter(tuple(arg))
            return lambda values: list(inner(values))
        return itemgetter(self._slot(arg))

    def _slot(self, arg: Any) -> int:
        if isinstance(arg, fx.Node):
            return self.slots[arg]
        self.values.append(arg)
        return len(self.values) - 1

    def folded(self, constants: Mapping[str, Any]) -> dict[str, Any]:
        """What calls read of that which follows from these constants alone, by the names that they read it by."""
        slots = self.values.copy()
        for name in self.ports.keys() & constants.keys():
            slots[self.ports[name]] = constants[name]
        for target, args, out in self._first:
            slots[out] = target(*args(slots))
        return {name: slots[slot] for name, slot in self._known.items()}

    def __call__(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Run with port values by name (those that the graph has not are ignored)."""
        slots = self.values.copy()
        for name, slot in self.ports.items():
            slots[slot] = values[name]
        for name, slot in self._known.items():
            slots[slot] = values[name]
        for target, args, out, free in self.calls:
            slots[out] = target(*args(slots))
            for slot in free:
                slots[slot] = None
        return {name: slots[slot] for name, slot in self.results.items()}


def known_at_first(graph: Graph) -> set[fx.Node]:
    """The calls that follow from literals and from constants of whole numbers alone; none that a result is made of:
    states may be written in place.
    """
    known: set[fx.Node] = set()
    sources = {node for node in graph.ports("const").values() if not node.meta["type"].dtype.is_floating_point}
    for node in graph.calls():
        if known.union(sources).issuperset(node.all_input_nodes):
            known.add(node)
    left = [node for node in graph.results().values() if node in known]
    while left:
        node = left.pop()
        known.discard(node)
        left += known.intersection(node.all_input_nodes)
    return known


def _is_idle(node: fx.Node) -> bool:
    """A cast to the dtype that its argument has, which is there for the day when the program is retyped, or a product
    with 1: the scale of rotations that have none.
    """
    if node.target not in (aten.to.dtype, aten.mul.Tensor) or len(node.args) != 2 or node.kwargs:
        return False
    source, by = node.args
    type_ = source.meta["type"] if isinstance(source, fx.Node) else None
    if not isinstance(type_, TensorType):
        return False
    if node.target is aten.to.dtype:
        return type_.dtype == by
    return isinstance(by, float) and by == 1.0 and type_.dtype.is_floating_point


def _has_nodes(arg: Any) -> bool:
    found: list[fx.Node] = []
    fx.map_arg(arg, found.append)
    return bool(found)


def _by_name(target: Callable[..., Any], names: tuple[str, ...], count: int) -> Callable[..., Any]:
    """`target` with its arguments from `count` on given by these names."""
    return lambda *args: target(*args[:count], **dict(zip(names, args[count:], strict=True)))
