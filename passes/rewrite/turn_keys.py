"""Positions applied to keys, as a graph of its own: what a sleep needs to put keys at other positions.

The graph maps k [B,1,N,D] (keys before positions, of any KV head) and positions i64 [B,N] to keys as attention sees
them. It is cut out of embed (what it makes of positions) and of a block (what that does with keys), so that it holds
for every model that applies positions to keys inside the block.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, fx

from sleepc.errors import Refusal
from sleepc.ir.graph import PARAMETERS, Graph, is_call
from sleepc.ir.infer import infer_types
from sleepc.ir.interp import run
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.types import TensorType
from sleepc.passes.analysis.find_sites import Site
from sleepc.passes.lib.emit import Emit, aten
from sleepc.passes.rewrite.key_positions import copy_nodes, read_extras

SIZED = (aten.reshape.default, aten.expand.default, aten.view.default)


def turn_graph(program: ProgramGraphs, wake: Graph, site: Site) -> Graph:
    """The graph, with ports k, positions and the constants of both, named by keys of `program.params` for embed's and
    as in `wake` for the block's.

    Raises Refusal(POSITIONS) if keys cannot be given other positions than those that they came with, or KV heads
    have positions of different kinds.
    """
    extras, embed = read_extras(wake, site), program.embed
    key = site.node.args[1]
    assert isinstance(key, fx.Node)
    graph = Graph(f"{wake.name}.turn")
    k = graph.add_port("input", "k", TensorType(site.k.meta["type"].dtype, ("B", 1, "N", site.d_k)))
    positions = graph.add_port("input", "positions", TensorType(torch.int64, ("B", "N")))
    graph.set_returns({"k": k})
    new: dict[fx.Node, fx.Node] = {embed.ports()["positions"]: positions}
    e = Emit(graph, "turn")

    def size(dim: int | str) -> fx.Node:
        return e.size(positions, 1 if dim == "T" else 0)

    results = embed.results()
    for name in extras:
        copy_nodes(e, _missing(graph, embed, results[name], new), new, size)
        new[wake.ports()[name]] = new[results[name]]
    new[site.k] = k
    nodes = _missing(graph, wake, key, new)
    heads = site.kv_heads if any(is_call(node, *SIZED) for node in nodes) else 1
    if heads > 1:
        new[site.k] = e.call(aten.expand.default, k, [-1, heads, -1, -1])
    copy_nodes(e, nodes, new, size)
    turned = new[key]
    graph.set_returns({"k": turned if heads == 1 else e.call(aten.slice.Tensor, turned, 1, 0, 1)})
    graph.drop_dead()
    infer_types(graph)
    if graph.results()["k"].meta["type"].dims != ("B", 1, "N", site.d_k):
        raise Refusal("POSITIONS", "positions differ by KV head", where=str(site.node.meta.get("source", "")))
    return graph


def _missing(graph: Graph, source: Graph, result: fx.Node, new: dict[fx.Node, fx.Node]) -> list[fx.Node]:
    """The calls of `source` that make `result` of what is in `new`, in order; parameters that they read get ports."""
    needed, found = {result}, []
    for node in reversed(list(source.fx.nodes)):
        if node not in needed or node in new or is_call(node, aten.sym_size.int):
            continue
        if node.op == "placeholder":
            port = node.meta["port"]
            if port.kind not in PARAMETERS:
                what = f"what is applied to keys as positions depends on {port.name}"
                raise Refusal("POSITIONS", what, where=source.name)
            new[node] = graph.ports().get(port.name) or graph.add_port(port.kind, port.name, node.meta["type"])
        else:
            found.append(node)
            needed.update(node.all_input_nodes)
    return found[::-1]


def bind_turn(program: ProgramGraphs, cls: str, graph: Graph) -> None:
    """The parameters of embed that the graph reads get ports of the class's blocks, by their keys."""
    for i, block in enumerate(program.layout):
        if block.cls == cls:
            own = {name: name for kind in PARAMETERS for name in graph.ports(kind)}
            program.layout[i] = replace(block, params={**own, **block.params})


def turn(e: Emit, graph: Graph, k: fx.Node, positions: fx.Node) -> fx.Node:
    """`graph` written into another: k [B,1,N,D], positions [B,N] -> [B,1,N,D]."""
    ports = graph.ports()
    new = {ports["k"]: e.cast(k, ports["k"].meta["type"].dtype), ports["positions"]: positions}
    for name, node in ports.items():
        if node not in new:
            new[node] = e.graph.ports().get(name) or e.graph.add_port(node.meta["port"].kind, name, node.meta["type"])
    for node in graph.calls():
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), new.__getitem__)
        new[node] = e.call(node.target, *args, **kwargs)
    return new[graph.results()["k"]]


def turns_add(program: ProgramGraphs, graph: Graph, params: dict[str, str]) -> bool:
    """Do two turns make one, turn(turn(k, p), d) = turn(k, p + d), also back? Measured on random keys. Rotations do;
    rotations that also scale keys do not. `params`: keys of the block's parameters.
    """
    assert program.max_positions is not None, "positions that do not end are never numbered anew"
    last, type_ = program.max_positions - 1, graph.ports()["k"].meta["type"]
    at = torch.tensor([[0, 1, last // 3, last // 2, last]])
    by = [-at // 2, -at, torch.zeros_like(at)]
    k = torch.randn(1, 1, at.shape[1], type_.dims[3], generator=torch.Generator().manual_seed(0)).to(type_.dtype)
    constants = {
        name: program.params[params.get(name, name)].materialise().to(node.meta["type"].dtype)
        for kind in PARAMETERS
        for name, node in graph.ports(kind).items()
    }

    def turned(x: Tensor, positions: Tensor) -> Tensor:
        found: Tensor = run(graph, {**constants, "k": x.to(type_.dtype), "positions": positions})["k"]
        return found

    once, bound = turned(k, at), float(k.abs().max()) * (5e-2 if type_.dtype.itemsize < 4 else 1e-3)
    try:
        twice = [turned(once, step) for step in by]
    except (IndexError, RuntimeError):  # a table of positions has none before the first one
        return False
    both = [turned(k, at + step) for step in by]
    return all(float((x.double() - y.double()).abs().max()) < bound for x, y in zip(twice, both, strict=True))
