"""Cut the flat graph into embed, blocks and head, between which one tensor [B,T,d] passes."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import networkx as nx
import torch
from torch import fx

from sleepc.capture.attention_free import no_attention
from sleepc.ir.graph import Graph, graph_key, is_call
from sleepc.ir.infer import infer_types
from sleepc.ir.program import Block, BlockClass, ProgramGraphs
from sleepc.ir.types import TensorType
from sleepc.ops import RECURRENCES
from sleepc.passes.analysis.dependence import find_dependence
from sleepc.passes.base import Effect, Pass
from sleepc.passes.blocks.pack_streams import pack_streams
from sleepc.passes.facts import FLAT, FUNCTIONAL, MASKS_KNOWN, REAL, Fact
from sleepc.passes.lib.region import Extractor, Given, between, operators
from sleepc.passes.lib.values import is_size, is_tensor, val

ATTENTION = torch.ops.sleepc.attention.default


@dataclass(frozen=True)
class CutBlocks(Pass):
    """Borders are dominators: tensors [B,T,d] that every path from the tokens to the logits passes (networkx, on the
    graph of values that depend on the tokens). A block holds what stands between two of them: an attention, or
    convolutions and recurrences of the model's own, or both; its border is the last dominator before the next of these,
    and the last block ends at the value up to which it is built like the one before it.

    Blocks of equal graphs share a class. What does not depend on the tokens (rotary tables) and is read by several
    parts is computed once, in embed, and handed on as an extra.

    Where several tensors pass between two attentions, they become one first (pack_streams.py).

    Raises Refusal: NO_ATTENTION, or BLOCKS if what passes between two attentions cannot become one tensor.
    """

    name: ClassVar[str] = "cut-blocks"
    effect: ClassVar[Effect] = "EXACT"
    requires: ClassVar[tuple[Fact, ...]] = (FLAT, FUNCTIONAL, REAL, MASKS_KNOWN)

    def run(self, program: ProgramGraphs) -> int:
        """The number of blocks."""
        flat = program.embed
        sites = [n for n in flat.calls() if is_call(n, ATTENTION, *RECURRENCES)]
        if not any(is_call(n, ATTENTION) for n in sites):
            raise no_attention("")
        borders = find_borders(flat, sites)
        if not borders:
            borders = pack_streams(flat, sites, [n for n in sites if is_call(n, ATTENTION)])
        place = _place(flat, borders, sites)
        _build(program, flat, borders, place)
        return len(program.layout)


def find_borders(flat: Graph, sites: list[fx.Node]) -> list[fx.Node]:
    """The borders h_0 .. h_D: block i maps border i to border i + 1. Sites without a border between share a block. None
    if two attentions would, or the last block has no end.
    """
    order = {node: i for i, node in enumerate(flat.fx.nodes)}
    chain = _dominators(flat, sites, order)
    borders: list[fx.Node] = []
    block: list[fx.Node] = []
    for site in sites:
        after = order[block[-1]] if block else -1
        found = [n for n in chain if after < order[n] < order[site] and is_border(n)]
        found = [n for n in found if val(n).dtype == val((borders or found)[0]).dtype]
        block = [site] if found else [*block, site]
        attentions = [n for n in block if is_call(n, ATTENTION)]
        if not (found or borders) or len(attentions) > 1:
            return []
        borders += found[-1:]
    found = [n for n in chain if order[n] > order[sites[-1]] and is_border(n)]
    if not found:
        return []
    last = _last_border(flat, borders, found)
    return [*borders, last] if last is not None else []


def _last_border(flat: Graph, borders: list[fx.Node], candidates: list[fx.Node]) -> fx.Node | None:
    hidden = str(val(borders[-1]).shape[-1])
    candidates = [n for n in candidates if str(val(n).shape[-1]) == hidden]
    if len(borders) > 1:
        # Literals (a window) may differ between the last two blocks; the operators may not.
        wanted = operators(between(flat, borders[-2], borders[-1]))
        for node in candidates:
            if operators(between(flat, borders[-1], node)) == wanted:
                return node
    # One block, or a last one unlike the others: it ends at the last residual sum.
    sums = [n for n in candidates if is_call(n, torch.ops.aten.add.Tensor) and len(n.all_input_nodes) == 2]
    return sums[-1] if sums else None


def _dominators(flat: Graph, sites: list[fx.Node], order: dict[fx.Node, int]) -> list[fx.Node]:
    """Tensors that every path from the tokens to the logits passes, in order.

    Values that are made of the tokens before the first site and read by later blocks too (embeddings that are
    added to every layer's values) are not such paths: embed passes them on in addition to h.
    """
    dependence = find_dependence(flat, ("tokens",), ("positions",))
    tokens, logits = flat.ports("input")["tokens"], flat.results()["logits"]
    graph: nx.DiGraph[fx.Node] = nx.DiGraph()
    for node in dependence.tokens:
        graph.add_edges_from((source, node) for source in node.all_input_nodes if source in dependence.tokens)
    after = nx.descendants(graph, sites[0]) | {sites[0]}
    late = _chain(graph.subgraph(after), sites[0], logits)
    first_border = _first_border(graph, sites, late, order)
    if first_border is None:
        return late
    beyond = nx.descendants(graph, first_border)
    for node in set(graph) - after:
        if beyond.intersection(graph.successors(node)):
            _bypass(graph, node, tokens, first_border)
    return [*_chain(graph, tokens, first_border), *late[late.index(first_border) + 1 :]]


def _first_border(
    graph: nx.DiGraph[fx.Node], sites: list[fx.Node], late: list[fx.Node], order: dict[fx.Node, int]
) -> fx.Node | None:
    """The end of the first block: of what `late` has between two sites, the last that all sites before lead to, that
    leads to all others, and that is as wide as what the last block adds to, in its dtype. (One that is in the block
    itself, behind a first of two mixers side by side or between a convolution and its recurrence, is not.)
    """
    sums = [n for n in late if is_call(n, torch.ops.aten.add.Tensor) and is_border(n) and _adds_tokens(graph, n)]
    like = _kind(sums[-1]) if sums else None
    for i in range(1, len(sites) + 1):
        end = order[sites[i]] if i < len(sites) else len(order)
        found = [n for n in late if order[sites[i - 1]] < order[n] < end and is_border(n)]
        for node in reversed(found):
            if _kind(node) == (like or _kind(node)) and (
                nx.ancestors(graph, node).issuperset(sites[:i]) and nx.descendants(graph, node).issuperset(sites[i:])
            ):
                return node
    return None


def _kind(node: fx.Node) -> tuple[str, torch.dtype]:
    return str(val(node).shape[-1]), val(node).dtype


def _adds_tokens(graph: nx.DiGraph[fx.Node], node: fx.Node) -> bool:
    return len(node.all_input_nodes) == 2 and all(n in graph for n in node.all_input_nodes)


def _bypass(graph: nx.DiGraph[fx.Node], node: fx.Node, tokens: fx.Node, border: fx.Node) -> None:
    """Take the node's edges away, unless it is the one way to the border."""
    edges = list(graph.out_edges(node))
    graph.remove_edges_from(edges)
    if not nx.has_path(graph, tokens, border):
        graph.add_edges_from(edges)


def _chain(graph: nx.DiGraph[fx.Node], start: fx.Node, end: fx.Node) -> list[fx.Node]:
    """Tensors on every path from start to end, in order."""
    above = nx.immediate_dominators(graph, start)
    chain = [end]
    while chain[-1] is not start:
        chain.append(above[chain[-1]])
    return [n for n in reversed(chain) if is_tensor(n)]


def is_border(node: fx.Node) -> bool:
    """Can the value be what blocks pass on: [B,T,d]?"""
    return val(node).dim() == 3 and val(node).is_floating_point()


def _place(flat: Graph, borders: list[fx.Node], sites: list[fx.Node]) -> dict[fx.Node, int]:
    """The part of each call: 0 embed, i + 1 block i, D + 1 head. Sizes are in no part; each part computes its own, and
    so it does what is made of weights alone, if several need it.

    Crossing a border leads into the next part. What does not depend on the tokens belongs to its users' part, or to
    embed if several parts use it; and so does what the first block and others make of a token alone, before any site.
    """
    dependence = find_dependence(flat, ("tokens",), ("positions",))
    tokens, crossed = dependence.tokens, set(borders)
    place: dict[fx.Node, int] = {}
    everywhere: set[fx.Node] = set()
    for node in flat.calls():
        if node in tokens:
            place[node] = max(place.get(n, 0) + (n in crossed) for n in node.all_input_nodes if n in tokens)
    for node in _made_of_one_token(flat, place, sites):
        place[node] = 0
    for node in reversed(list(flat.calls())):
        if node not in place and not is_size(node):
            users = {place[u] for u in node.users if u in place}
            if node not in dependence.positions and (len(users) > 1 or everywhere.intersection(node.users)):
                everywhere.add(node)
                continue
            place[node] = users.pop() if len(users) == 1 else 0
    for node in flat.calls():
        if is_call(node, operator.getitem) and node in place:  # parts hand on tensors, not tuples of them
            place[node] = place.get(node.all_input_nodes[0], place[node])
    return place


def _made_of_one_token(flat: Graph, place: dict[fx.Node, int], sites: list[fx.Node]) -> set[fx.Node]:
    """What stands in the first block, is behind no site, and is read by later parts."""
    behind, found = set(sites), set[fx.Node]()
    for node in flat.calls():
        if behind.intersection(node.all_input_nodes):
            behind.add(node)
    for node in reversed(list(flat.calls())):
        early = place.get(node) == 1 and node not in behind
        if early and any(place.get(user, 0) > 1 or user in found for user in node.users):
            found.add(node)
    return found


def _build(program: ProgramGraphs, flat: Graph, borders: list[fx.Node], place: dict[fx.Node, int]) -> None:
    parts: list[list[fx.Node]] = [[] for _ in range(len(borders) + 1)]
    for node in flat.calls():
        if node in place:
            parts[place[node]].append(node)
    everywhere = frozenset(n for n in flat.calls() if n not in place and not is_size(n))
    extras = _extras(parts, place, borders[0], find_dependence(flat, ("tokens",), ("positions",)).tokens)
    embed = _embed(flat, parts[0], {"h": borders[0], **extras}, everywhere)
    given = {node: Given(name, embed.results()[name].meta["type"]) for name, node in extras.items()}
    h_type = embed.results()["h"].meta["type"]
    seen: dict[tuple[object, ...], str] = {}
    layout, classes = [], {}
    for part, (start, end) in zip(parts[1:-1], pairwise(borders), strict=True):
        handed = {**given, start: Given("h", h_type)}
        out = Extractor(flat, Graph(f"block.{len(seen)}"), handed, abstract=True, everywhere=everywhere)
        out.run(start, part, {"h": end})
        key = structure_of(out.graph)
        if key not in seen:
            seen[key] = out.graph.name
            infer_types(out.graph)
            classes[out.graph.name] = BlockClass(out.graph)
        layout.append(Block(seen[key], out.params))
    handed = {**given, borders[-1]: Given("h", h_type)}
    head = Extractor(flat, Graph("head"), handed, abstract=False, everywhere=everywhere)
    head.run(borders[-1], parts[-1], {"logits": flat.results()["logits"]})
    infer_types(head.graph)
    program.embed, program.head, program.classes, program.layout = embed, head.graph, classes, layout
    program.hidden = int(val(borders[0]).shape[-1])
    program.dtype = val(borders[0]).dtype


def _embed(flat: Graph, nodes: list[fx.Node], results: dict[str, fx.Node], everywhere: frozenset[fx.Node]) -> Graph:
    ports = flat.ports("input")
    given = {port: Given(name, TensorType(torch.int64, ("B", "T"))) for name, port in ports.items()}
    out = Extractor(flat, Graph("embed"), given, abstract=False, everywhere=everywhere)
    out.run(ports["tokens"], nodes, results)
    if "positions" not in out.graph.ports():
        out.graph.add_port("input", "positions", TensorType(torch.int64, ("B", "T")))
    infer_types(out.graph)
    return out.graph


def _extras(
    parts: list[list[fx.Node]], place: dict[fx.Node, int], border: fx.Node, tokens: frozenset[fx.Node]
) -> dict[str, fx.Node]:
    """Values of embed that later parts read, other than the first one's h, and inputs that they read: "x0", or "e0" if
    it is made of the tokens.
    """
    found: dict[fx.Node, None] = {}
    for number, part in enumerate(parts[1:], 1):
        for source in (source for node in part for source in node.all_input_nodes):
            port = source.meta.get("port")
            if (number > 1 or source is not border) and (place.get(source) == 0 or (port and port.kind == "input")):
                found.setdefault(source)
    return {f"{'e' if node in tokens else 'x'}{i}": node for i, node in enumerate(found)}


def structure_of(graph: Graph) -> tuple[object, ...]:
    """What blocks of one class have in common: everything but where it came from."""
    types = tuple(str(port.meta["type"]) for port in graph.ports().values())
    return graph_key(graph), graph.returns, types
