"""Sites of block classes: attention, with its heads, what q and k are before positions and the input that gates can
read, and the convolutions and recurrences of the model's own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import networkx as nx
import torch
from torch import fx

from sleepc.errors import Refusal, SleepcError
from sleepc.ir.graph import Graph, is_call
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.types import TensorType
from sleepc.masks import Mask
from sleepc.ops import RECURRENCES
from sleepc.passes.analysis.dependence import Dependence, find_dependence
from sleepc.passes.lib.emit import aten

NO_POSITIONS = re.compile(r"h|e\d+|real|lengths")  # ports for what is made of the tokens, and how many of them are real
LAYOUTS = (aten.slice.Tensor, aten.unflatten.int, aten.permute.default, aten.transpose.int, aten.reshape.default)
RELAYOUTS = (aten.reshape.default, aten.transpose.int, aten.to.dtype)  # the numbers stay, they only stand elsewhere


@dataclass(frozen=True)
class Site:
    """One attention layer. q, k, v are values [B,H,T,D] of the block's graph, q and k before positions are applied."""

    node: fx.Node
    q: fx.Node
    k: fx.Node
    v: fx.Node
    x: fx.Node  # [B,T,hidden], the nearest value that q, k and v are all made from: the block's normalised input
    q_heads: int
    kv_heads: int
    d_k: int
    d_v: int
    mask: Mask
    slopes: tuple[float, ...]
    softcap: float
    scale: float
    sink_logits: bool
    by_distance: fx.Node | None  # what queries add to scores by distance [B,Hq,T,R]
    rotated: bool  # are positions applied to q and k inside the block?
    placed: bool  # are the keys those of an earlier layer, which had applied positions to them?


def find_site(graph: Graph) -> Site:
    """The attention site of a block class (a block has one). Raises Refusal if q and k before positions are not
    found.
    """
    node = attention_of(graph)
    q, k, v = node.args[:3]
    assert isinstance(q, fx.Node)
    assert isinstance(k, fx.Node)
    assert isinstance(v, fx.Node)
    tree = Dominators(graph, dependence_of(graph))
    placed = tree.comes_in(k)  # then q, too, is what attention reads
    before_q, before_k = (q, k) if placed else (tree.before_positions(q), tree.before_positions(k))
    x = tree.common([before_q, before_k, v])
    hidden = dims(graph.ports()["h"])
    while not isinstance(x.meta["type"], TensorType) or dims(x) != hidden:
        x = tree.above[x]
    options: dict[str, Any] = dict(node.kwargs)
    (_, q_heads, _, d_k), (_, kv_heads, _, d_v) = dims(q), dims(v)
    return Site(
        node=node,
        q=before_q,
        k=before_k,
        v=v,
        x=x,
        q_heads=int(q_heads),
        kv_heads=int(kv_heads),
        d_k=int(d_k),
        d_v=int(d_v),
        mask=Mask.parse(options.get("sees", "")),
        slopes=tuple(options.get("slopes", ())),
        softcap=options["softcap"],
        scale=options["scale"],
        sink_logits=node.args[4] is not None,
        by_distance=node.args[5] if len(node.args) > 5 else None,  # type: ignore[arg-type]
        rotated=before_q is not q,
        placed=placed,
    )


def find_sites(program: ProgramGraphs) -> dict[str, Site]:
    """The attention sites of the classes that have one, by the classes' names. Raises as `find_site` does."""
    return {name: find_site(cls.wake) for name, cls in program.classes.items() if find_attention(cls.wake)}


def attention_of(graph: Graph) -> fx.Node:
    """The attention of a block class that has one. Raises SleepcError if it has none."""
    node = find_attention(graph)
    if node is None:
        raise SleepcError("a block without attention has no heads to go by", where=graph.name)
    return node


def find_attention(graph: Graph) -> fx.Node | None:
    """The attention of a block class (a block has at most one), None in a layer that is recurrent by itself."""
    found = (n for n in graph.calls() if is_call(n, torch.ops.sleepc.attention.default) or is_windowed(n))
    return next(found, None)


def recurrences_of(graph: Graph) -> dict[str, fx.Node]:
    """The model's own convolutions and recurrences in a block class that has no memory yet, in order, by the names of
    their states: "tail.0", "own.0".
    """
    found: dict[str, fx.Node] = {}
    count = {"tail": 0, "own": 0}
    for node in graph.calls():
        if is_call(node, *RECURRENCES):
            kind = "tail" if is_call(node, torch.ops.sleepc.short_conv.default) else "own"
            found[f"{kind}.{count[kind]}"] = node
            count[kind] += 1
    return found


def is_windowed(node: fx.Node) -> bool:
    """Is it attention over a window, with kept pairs or without?"""
    return is_call(node, torch.ops.sleepc.window_attention.default, torch.ops.sleepc.kept_attention.default)


def dependence_of(graph: Graph) -> Dependence:
    """What in a block depends on h, and what on the positions that embed hands on (of the tokens it hands on "e0")."""
    return find_dependence(graph, ("h",), tuple(n for n in graph.ports("input") if not NO_POSITIONS.fullmatch(n)))


def positions_reach(graph: Graph, value: fx.Node) -> bool:
    """Is `value` made from h together with something that depends on positions?"""
    return bool(Dominators(graph, dependence_of(graph)).tainted(value))


def dims(node: fx.Node) -> tuple[int | str, ...]:
    """The dimensions of a tensor node."""
    type_ = node.meta["type"]
    assert isinstance(type_, TensorType), node
    return type_.dims


def turned(node: fx.Node) -> tuple[int | str, ...]:
    """The dimensions of a node [B,H,T,D] with tokens and heads the other way round."""
    rows, heads, tokens, width = dims(node)
    return rows, tokens, heads, width


class Dominators:
    """The dominator tree, from h, of the values of a block that depend on the tokens."""

    def __init__(self, graph: Graph, dependence: Dependence) -> None:
        self.dependence = dependence
        self.root = graph.ports()["h"]
        tokens = dependence.tokens
        edges: nx.DiGraph[fx.Node] = nx.DiGraph()
        edges.add_node(self.root)
        for node in tokens:
            edges.add_edges_from((n, node) for n in node.all_input_nodes if n in tokens)
        self.above: dict[fx.Node, fx.Node] = nx.immediate_dominators(edges, self.root)

    def common(self, nodes: list[fx.Node]) -> fx.Node:
        """The nearest value that all of `nodes` are made from (or one of them, if it is above the others). Those that
        are made of extras alone do not count; it is h if all are.
        """
        of_h = [node for node in nodes if node in self.above or node is self.root] or [self.root]
        chains = [self._chain(node) for node in of_h]
        shared = set(chains[0]).intersection(*chains[1:])
        return next(node for node in chains[0] if node in shared)

    def _chain(self, node: fx.Node) -> list[fx.Node]:
        chain = [node]
        while chain[-1] is not self.root:
            chain.append(self.above[chain[-1]])
        return chain

    def before_positions(self, value: fx.Node) -> fx.Node:
        """The value just before positions are applied on the way to `value`; `value` itself if none are.

        Raises Refusal(POSITIONS) if it has not the shape of `value`.
        """
        origin = self.origin(value)
        if is_call(origin, aten.transpose.int) and dims(origin) != dims(value):
            origin = origin.all_input_nodes[0]  # the heads stand elsewhere while positions are applied
        if dims(origin) != dims(value):
            raise Refusal(
                "POSITIONS",
                "q or k before positions is not found: the value that positions are applied to has another shape",
                where=str(value.meta.get("source", "")),
            )
        return origin

    def comes_in(self, value: fx.Node) -> bool:
        """Is it a part of h as it is, only in another layout?"""
        while is_call(value, *LAYOUTS):
            value = value.all_input_nodes[0]
        return value is self.root

    def origin(self, value: fx.Node) -> fx.Node:
        """The same, if it has one, in the shape of `value` or with tokens and heads the other way round.

        Tainted is what is made from the tokens together with something that depends on positions. The untainted values
        that feed tainted ones have one nearest common origin: that is q (or k) before positions.
        """
        tainted = self.tainted(value)
        if value not in tainted:
            return value
        tokens = self.dependence.tokens
        frontier = {n for t in tainted for n in t.all_input_nodes if n in tokens and n not in tainted}
        origin = self.common(list(frontier))
        while not isinstance(origin.meta["type"], TensorType):
            origin = self.above[origin]  # one value split in two
        while dims(origin) not in (dims(value), turned(value)) and is_call(origin, *RELAYOUTS):
            origin = origin.all_input_nodes[0]
        return origin

    def tainted(self, value: fx.Node) -> set[fx.Node]:
        """Ancestors of `value` (and itself) below the first operation that brings positions in."""
        tokens, positions = self.dependence.tokens, self.dependence.positions
        if value not in tokens:
            return set()
        ancestors, stack = {value}, [value]
        while stack:
            for source in stack.pop().all_input_nodes:
                if source in tokens and source not in ancestors:
                    ancestors.add(source)
                    stack.append(source)
        tainted: set[fx.Node] = set()
        for node in self.root.graph.nodes:
            if node in ancestors and any(n in positions or n in tainted for n in node.all_input_nodes):
                tainted.add(node)
        return tainted
