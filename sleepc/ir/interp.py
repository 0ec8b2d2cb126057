"""The meaning of a graph, of one value of it, and of a program: operators, called in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from sleepc.errors import SleepcError
from sleepc.ir.diagnose import excerpt
from sleepc.ir.graph import Graph
from sleepc.ir.program import ProgramGraphs

Given = Callable[[fx.Node], Any]
"""given(node) is the value of a node that is known, or NotImplemented: then it is computed from its arguments."""
Hook = Callable[[fx.Node, tuple[Any, ...], dict[str, Any]], Any]
"""hook(node, args, kwargs) gives a call's value, or NotImplemented to leave it to the operator."""


def widened(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any], dtype: torch.dtype) -> Any:
    """A call's value with casts to floats that are narrower than `dtype` going to that; a Hook, but for the last."""
    narrow = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.dtype) and a.is_floating_point]
    narrow = [a for a in narrow if torch.promote_types(a, dtype) == dtype]
    if not narrow:
        return NotImplemented
    args = tuple(dtype if isinstance(a, torch.dtype) and a in narrow else a for a in args)
    kwargs = {n: dtype if isinstance(a, torch.dtype) and a in narrow else a for n, a in kwargs.items()}
    return node.target(*args, **kwargs)  # type: ignore[operator]


def run(graph: Graph, values: Mapping[str, Any], hook: Hook | None = None) -> dict[str, Any]:
    """The results of `graph` by name, for `values` of its ports by name; others are ignored.

    Operators that make tensors out of nothing make them on the device of the first port that holds
    a tensor. Raises SleepcError if a port has no value; what an operator raises gets a note that
    shows the program around it. Use Runner to run a graph many times.
    """
    return Runner(graph)(values, hook)


def value_of(target: fx.Node, given: Given) -> Any:
    """The value of one node, from what `given` says of the nodes that it is made of.

    Values are freed after their last use. Raises SleepcError if a port is asked for that `given` does not know.
    """
    known: dict[fx.Node, Any] = {}
    needed = _needed(target, given, known)
    last = {source: node for node in needed for source in node.all_input_nodes}
    for node in needed:
        known[node] = _evaluate(_prepare(node, ()), known, None, None)
        for source in {s for s in node.all_input_nodes if last[s] is node}:
            del known[source]
    return known[target]


def _needed(target: fx.Node, given: Given, known: dict[fx.Node, Any]) -> list[fx.Node]:
    """The calls to run for `target`, in order; what is given goes into `known`."""
    wanted = {target}
    needed = []
    for node in reversed(target.graph.nodes):
        if node not in wanted:
            continue
        value = given(node)
        if value is not NotImplemented:
            known[node] = value
        elif node.op == "placeholder":
            raise SleepcError(f"port {node.meta['port'].name!r} has no value")
        else:
            needed.append(node)
            wanted.update(node.all_input_nodes)
    return needed[::-1]


@dataclass(frozen=True)
class _Call:
    node: fx.Node
    target: Callable[..., Any]
    plain: bool  # no node stands inside a list
    makes: bool  # out of nothing: it needs the device
    frees: tuple[fx.Node, ...]


class Runner:
    """A graph made ready to run many times; it must not be changed meanwhile."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.ports = {node.meta["port"].name: node for node in graph.ports().values()}
        kept = set(graph.results().values())
        last: dict[fx.Node, fx.Node] = {}
        for node in graph.calls():
            last.update(dict.fromkeys(node.all_input_nodes, node))
            last.setdefault(node, node)
        frees: dict[fx.Node, list[fx.Node]] = {}
        for value, reader in last.items():
            if value not in kept:
                frees.setdefault(reader, []).append(value)
        self.calls = [_prepare(node, tuple(frees.get(node, ()))) for node in graph.calls()]

    def __call__(self, values: Mapping[str, Any], hook: Hook | None = None) -> dict[str, Any]:
        """The results by name; see `run`."""
        known = {node: self._given(values, name) for name, node in self.ports.items()}
        device = next((v.device for v in known.values() if isinstance(v, torch.Tensor)), None)
        for call in self.calls:
            try:
                known[call.node] = _evaluate(call, known, device, hook)
            except Exception as error:
                source = call.node.meta.get("source")
                error.add_note(f"in graph {self.graph.name}" + (f", from {source}" if source else ""))
                error.add_note(excerpt(self.graph, call.node))
                raise
            for node in call.frees:
                del known[node]
        return {name: known[node] for name, node in self.graph.results().items()}

    def _given(self, values: Mapping[str, Any], name: str) -> Any:
        if name not in values:
            raise SleepcError(f"port {name!r} has no value", where=f"graph {self.graph.name}")
        return values[name]


def _prepare(node: fx.Node, frees: tuple[fx.Node, ...]) -> _Call:
    assert callable(node.target)
    values = (*node.args, *node.kwargs.values())
    plain = not any(isinstance(v, (list, tuple, dict, slice)) for v in values)
    return _Call(node, node.target, plain, _makes_tensors(node.target), frees)


def _makes_tensors(target: Any) -> bool:
    """Has the operator a device argument and no tensor to take the device from?"""
    if not isinstance(target, OpOverload):
        return False
    arguments = target._schema.arguments
    named = any(a.name == "device" for a in arguments)
    return named and not any("Tensor" in str(a.type) for a in arguments)


def _evaluate(call: _Call, known: Mapping[fx.Node, Any], device: torch.device | None, hook: Hook | None) -> Any:
    node = call.node
    if call.plain:
        args = tuple(known[a] if isinstance(a, fx.Node) else a for a in node.args)
        kwargs = {k: known[v] if isinstance(v, fx.Node) else v for k, v in node.kwargs.items()}
    else:
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), known.__getitem__)
    if hook is not None:
        value = hook(node, args, kwargs)
        if value is not NotImplemented:
            return value
    if call.makes and device is not None:
        kwargs = {"device": device, **kwargs}
    return call.target(*args, **kwargs)


@torch.no_grad()
def run_program(program: ProgramGraphs, tokens: Sequence[int]) -> Tensor:
    """Logits [T,V] of tokens [T] read by a row that has read nothing; a program at any level, also between two."""
    ids = torch.tensor([list(tokens)], dtype=torch.int64)
    positions = torch.arange(len(tokens))[None]
    inputs: dict[str, Tensor] = {"tokens": ids, "positions": positions, "lengths": torch.tensor([len(tokens)])}
    states = {s.name: s.first(1) for s in program.all_states()}
    names = {key: key for key in program.params}
    values = run(program.embed, {**inputs, **states, **_parameters(program, program.embed, names)})
    for i, block in enumerate(program.layout):
        cls = program.classes[block.cls]
        own = {local: states[full] for local, full in program.state_names(i).items()}
        values |= run(cls.wake, {**values, **own, **_parameters(program, cls.wake, block.params)})
    if program.layout:
        values = run(program.head, {**values, **_parameters(program, program.head, names)})
    logits: Tensor = values["logits"][0]
    return logits


def _parameters(program: ProgramGraphs, graph: Graph, names: Mapping[str, str]) -> dict[str, Tensor]:
    """The values of a graph's parameter ports in the dtypes of the ports; `names` gives a port's key."""
    values = {}
    for kind in ("param", "const"):
        for name, port in graph.ports(kind).items():
            known = port.meta.get("type") or port.meta["val"]  # at level ATEN types are torch's
            values[name] = program.params[names[name]].materialise().to(known.dtype)
    return values
