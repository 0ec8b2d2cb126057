"""Take a part of a flat graph out as a graph of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import fx

from sleepc.errors import Refusal
from sleepc.ir.graph import Graph, PortKind
from sleepc.ir.types import TensorType, Type
from sleepc.passes.lib.values import call_sizes, is_size, is_tensor, val


@dataclass(frozen=True)
class Given:
    """A value that a part does not compute: it becomes an input port of this name and type."""

    name: str
    type: Type


@dataclass
class Extractor:
    """Copies nodes of `flat` into `graph`, adding ports as they are met; `params` maps parameter ports to keys.

    What is in `everywhere` every part computes for itself.

    Raises Refusal(BLOCKS) for a value that another part computes and does not hand on.
    """

    flat: Graph
    graph: Graph
    given: Mapping[fx.Node, Given]
    abstract: bool
    everywhere: frozenset[fx.Node] = frozenset()

    def __post_init__(self) -> None:
        self.params: dict[str, str] = {}
        self.known: dict[fx.Node, fx.Node] = {}
        self.sizes = call_sizes(self.flat)

    def run(self, anchor: fx.Node, nodes: Iterable[fx.Node], results: Mapping[str, fx.Node]) -> None:
        """Copy `nodes`, in order. `anchor` is the value [B,T,..] whose sizes are the part's B and T."""
        self.anchor = self._port(anchor)
        for node in nodes:
            self.known[node] = self._copy(node)
        for node in results.values():
            self._need(node)
        self.graph.set_returns({name: self.known[node] for name, node in results.items()})
        self.graph.drop_dead()

    def _need(self, node: fx.Node) -> None:
        if node in self.known:
            return
        if is_size(node):
            self.known[node] = self._size(node)
        elif node in self.everywhere:
            self.known[node] = self._copy(node)
        else:
            self._port(node)

    def _port(self, node: fx.Node) -> fx.Node:
        if node in self.given:
            port = self.graph.add_port("input", self.given[node].name, self.given[node].type)
        else:
            origin = node.meta.get("port")
            if origin is None:
                raise Refusal(
                    "BLOCKS",
                    f"{self.graph.name} reads a value inside an earlier block, in addition to what blocks pass on",
                    where=str(node.meta.get("source", "")),
                    fix="sleepc cuts models whose blocks pass on one tensor [B, T, d].",
                )
            kind: PortKind = origin.kind
            name = f"{kind[0]}{len(self.params)}" if self.abstract else origin.name
            example = val(node)
            port = self.graph.add_port(kind, name, TensorType(example.dtype, tuple(int(s) for s in example.shape)))
            self.params[name] = origin.name
        self.known[node] = port
        return port

    def _size(self, node: fx.Node) -> fx.Node:
        for dim, names in enumerate(self.sizes):
            if str(node.meta["val"]) in names:
                return self.graph.fx.call_function(torch.ops.aten.sym_size.int, (self.anchor, dim))
        return self._copy(node)

    def _copy(self, node: fx.Node) -> fx.Node:
        for source in node.all_input_nodes:
            self._need(source)
        copied: fx.Node = self.graph.fx.node_copy(node, self.known.__getitem__)
        copied.meta = {"source": node.meta.get("source", "")}
        return copied


def between(flat: Graph, start: fx.Node, end: fx.Node) -> list[fx.Node]:
    """The nodes on paths from `start` to `end`, without `start`, in order."""
    after = {start}
    for node in flat.calls():
        if after.intersection(node.all_input_nodes) and is_tensor_like(node):
            after.add(node)
    before = {end}
    for node in reversed(list(flat.calls())):
        if node in before:
            before.update(node.all_input_nodes)
    return [n for n in flat.calls() if n in after and n in before and n is not start]


def is_tensor_like(node: fx.Node) -> bool:
    """Has the node a tensor or a tuple of tensors as its value?"""
    return is_tensor(node) or isinstance(node.meta.get("val"), (tuple, list))


def operators(nodes: Iterable[fx.Node]) -> tuple[str, ...]:
    """The operators of nodes, in order, without their literals."""
    return tuple(str(node.target) for node in nodes)
