"""A graph with named ports: a pure function from inputs, parameters and state to named results."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import fx
from torch.fx import Node

from sleepc.ir.types import Type

PortKind = Literal["input", "param", "const", "state"]
PARAMETERS: tuple[PortKind, ...] = ("param", "const")


@dataclass(frozen=True)
class Port:
    """What a placeholder stands for."""

    kind: PortKind
    name: str


@dataclass
class Graph:
    """An fx graph whose placeholders are ports and whose results have names; `name` is for people."""

    name: str
    fx: fx.Graph = field(default_factory=fx.Graph)
    returns: tuple[str, ...] = ()

    def add_port(self, kind: PortKind, name: str, type_: Type | None) -> Node:
        """Append a placeholder after the ones that exist and return it."""
        last = None
        for node in self.fx.nodes:
            if node.op == "placeholder":
                last = node
        first = next(iter(self.fx.nodes), None)
        if last is not None:
            context = self.fx.inserting_after(last)
        elif first is not None:
            context = self.fx.inserting_before(first)
        else:
            context = self.fx.inserting_after(None)
        with context:
            node = self.fx.placeholder(f"{kind}_{len(self.ports())}")
        node.meta["port"] = Port(kind, name)
        if type_ is not None:
            node.meta["type"] = type_
        return node

    def ports(self, kind: PortKind | None = None) -> dict[str, Node]:
        """The placeholders by name, in order; of one kind if given."""
        return {
            node.meta["port"].name: node
            for node in self.fx.nodes
            if node.op == "placeholder" and (kind is None or node.meta["port"].kind == kind)
        }

    def set_returns(self, values: dict[str, Node]) -> None:
        """Make `values` the named results, replacing an earlier output node."""
        for node in list(self.fx.nodes):
            if node.op == "output":
                self.fx.erase_node(node)
        self.fx.output(tuple(values.values()))
        self.returns = tuple(values)

    def results(self) -> dict[str, Node]:
        """The named results."""
        values: Any = self.output().args[0]
        return dict(zip(self.returns, values, strict=True))

    def output(self) -> Node:
        """The output node."""
        found: Node = next(node for node in reversed(self.fx.nodes) if node.op == "output")
        return found

    def calls(self) -> Iterator[Node]:
        """The operator calls, in order."""
        return (node for node in list(self.fx.nodes) if node.op == "call_function")

    def clone(self) -> Graph:
        """A copy that shares nothing that a pass may change (node.meta is copied one level deep)."""
        copy = Graph(self.name, returns=self.returns)
        mapping: dict[Node, Node] = {}
        for node in self.fx.nodes:
            mapping[node] = copy.fx.node_copy(node, lambda n: mapping[n])
        return copy

    def drop_dead(self) -> int:
        """Erase calls without users, and return how many; ports stay."""
        dropped = 0
        for node in reversed(list(self.calls())):
            if not node.users:
                self.fx.erase_node(node)
                dropped += 1
        return dropped


def without_result(graph: Graph, name: str) -> Graph:
    """A copy without one of the results, and without what only that one needs; ports stay."""
    graph = graph.clone()
    graph.set_returns({each: node for each, node in graph.results().items() if each != name})
    graph.drop_dead()
    return graph


def with_result(graph: Graph, name: str) -> Graph:
    """A copy with one of the results alone, and what that needs; ports stay."""
    graph = graph.clone()
    graph.set_returns({name: graph.results()[name]})
    graph.drop_dead()
    return graph


def is_call(node: Any, *targets: Any) -> bool:
    """Is `node` a call of one of `targets`?"""
    return isinstance(node, Node) and node.op == "call_function" and node.target in targets


def graph_key(graph: Graph) -> tuple[object, ...]:
    """A graph's nodes, comparable: equal keys mean equal graphs, but for names and sources."""
    number: dict[Node, str] = {}
    rows = []
    for i, node in enumerate(graph.fx.nodes):
        number[node] = f"%{i}"
        args = fx.map_arg((node.args, node.kwargs), number.__getitem__)
        type_ = str(node.meta.get("type")) if node.op == "placeholder" else ""
        rows.append(
            (node.op, node.meta.get("port"), type_, str(node.target) if node.op == "call_function" else "", str(args))
        )
    return tuple(rows)
