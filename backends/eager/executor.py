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
DIRECT: dict[Any, Callable[..., Any]] = {
    aten.add.Tensor: torch.add,
    aten.cat.default: torch.cat,
    aten.linear.default: torch.nn.functional.linear,
    aten.matmul.default: torch.matmul,
    aten.mean.dim: torch.mean,
    aten.mul.Tensor: torch.mul,
    aten.neg.default: torch.neg,
    aten.pow.Tensor_Scalar: torch.pow,
    aten.reshape.default: torch.reshape,
    aten.rsqrt.default: torch.rsqrt,
    aten.sigmoid.default: torch.sigmoid,
    aten.sym_size.int: torch.Tensor.size,
    aten.transpose.int: torch.transpose,
    aten.unsqueeze.default: torch.unsqueeze,
}
FACTORIES = ("arange", "full", "zeros", "ones", "empty", "scalar_tensor")


class Executor:
    """Runs a graph: named values in, named results out. Values are freed after their last use.

    Values lie in a list: those of ports and calls first, then the literals, so that the arguments of a call are one
    selection from the list.
    """

    def __init__(self, graph: Graph, functions: Mapping[Any, Callable[..., Any]], device: torch.device) -> None:
        self.functions, self.device = {**DIRECT, **functions}, device
        self.slots: dict[fx.Node, int] = {}
        for i, node in enumerate(graph.fx.nodes):
            self.slots[node] = self.slots[node.args[0]] if _is_idle_cast(node) else i
        self.values: list[Any] = [None] * len(graph.fx.nodes)
        self.ports = {name: self.slots[node] for name, node in graph.ports().items()}
        self.results = {name: self.slots[node] for name, node in graph.results().items()}
        last = {self.slots[source]: node for node in graph.fx.nodes for source in node.all_input_nodes}
        self.calls = [self._call(node, last) for node in graph.calls() if not _is_idle_cast(node)]

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

    def __call__(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Run with port values by name (those that the graph has not are ignored)."""
        slots = self.values.copy()
        for name, slot in self.ports.items():
            slots[slot] = values[name]
        for target, args, out, free in self.calls:
            slots[out] = target(*args(slots))
            for slot in free:
                slots[slot] = None
        return {name: slots[slot] for name, slot in self.results.items()}


def _is_idle_cast(node: fx.Node) -> bool:
    """A cast to the dtype that its argument has: it is there for the day when the program is retyped."""
    if node.target is not aten.to.dtype or len(node.args) != 2 or node.kwargs:
        return False
    source = node.args[0]
    type_ = source.meta["type"] if isinstance(source, fx.Node) else None
    return isinstance(type_, TensorType) and type_.dtype == node.args[1]


def _has_nodes(arg: Any) -> bool:
    found: list[fx.Node] = []
    fx.map_arg(arg, found.append)
    return bool(found)


def _by_name(target: Callable[..., Any], names: tuple[str, ...], count: int) -> Callable[..., Any]:
    """`target` with its arguments from `count` on given by these names."""
    return lambda *args: target(*args[:count], **dict(zip(names, args[count:], strict=True)))
