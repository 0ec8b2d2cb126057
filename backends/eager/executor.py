"""A graph as a list of calls, compiled once: every step is one operator call on a list of values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from sleepc.ir.graph import Graph
from sleepc.ops import functional

ours = torch.ops.sleepc
# Our operators are called as the plain functions that they are, without the dispatcher: faster, and differentiable as
# they stand.
PLAIN: dict[Any, Callable[..., Any]] = {
    getattr(ours, name).default: getattr(functional, name)
    for name in (
        "window_slots",
        "window_mask",
        "window_attention",
        "write_slots",
        "short_conv",
        "l2norm",
        "delta_rule",
        "delta_rule_read",
        "replay",
        "attention",
    )
}
# Where no gradient is wanted, windows and records are written in place.
IN_PLACE: dict[Any, Callable[..., Any]] = PLAIN | {ours.write_slots.default: functional.write_slots_}
FACTORIES = ("arange", "full", "zeros", "ones", "empty", "scalar_tensor")


class Executor:
    """Runs a graph: named values in, named results out. Values are freed after their last use."""

    def __init__(self, graph: Graph, functions: Mapping[Any, Callable[..., Any]], device: torch.device) -> None:
        self.slots: dict[fx.Node, int] = {node: i for i, node in enumerate(graph.fx.nodes)}
        self.ports = {name: self.slots[node] for name, node in graph.ports().items()}
        self.results = {name: self.slots[node] for name, node in graph.results().items()}
        last: dict[fx.Node, fx.Node] = {}
        for node in graph.fx.nodes:
            for source in node.all_input_nodes:
                last[source] = node
        self.calls = [self._call(node, functions, device, last) for node in graph.calls()]

    def _call(
        self, node: fx.Node, functions: Mapping[Any, Any], device: torch.device, last: Mapping[fx.Node, fx.Node]
    ) -> Any:
        target = functions.get(node.target, node.target)
        kwargs = dict(node.kwargs)
        name = getattr(getattr(node.target, "overloadpacket", None), "__name__", "")
        if name in FACTORIES:
            kwargs["device"] = device
        args = fx.map_arg((node.args, kwargs), lambda n: _Slot(self.slots[n]))
        free = [self.slots[n] for n in set(node.all_input_nodes) if last[n] is node]
        return target, _getter(args[0]), _kwargs_getter(args[1]), self.slots[node], free

    def __call__(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Run with port values by name (those that the graph has not are ignored)."""
        slots: list[Any] = [None] * len(self.slots)
        for name, slot in self.ports.items():
            slots[slot] = values[name]
        for target, args, kwargs, out, free in self.calls:
            slots[out] = target(*args(slots), **kwargs(slots))
            for slot in free:
                slots[slot] = None
        return {name: slots[slot] for name, slot in self.results.items()}


class _Slot(int):
    """An index into the values, apart from a number that is an argument."""


def _getter(args: tuple[Any, ...]) -> Callable[[list[Any]], list[Any]]:
    """Arguments as a function of the values; flat argument lists, the common case, take one comprehension."""
    if any(isinstance(a, (list, tuple)) for a in args):
        return lambda values: [_fill(a, values) for a in args]
    plan = [(isinstance(a, _Slot), a) for a in args]
    return lambda values: [values[a] if is_slot else a for is_slot, a in plan]


def _kwargs_getter(kwargs: dict[str, Any]) -> Callable[[list[Any]], dict[str, Any]]:
    if not any(isinstance(a, (_Slot, list, tuple)) for a in kwargs.values()):
        return lambda values: kwargs
    return lambda values: {k: _fill(a, values) for k, a in kwargs.items()}


def _fill(arg: Any, values: list[Any]) -> Any:
    if isinstance(arg, _Slot):
        return values[arg]
    if isinstance(arg, (list, tuple)):
        return [_fill(a, values) for a in arg]
    return arg
