"""Layout `native` of strategy `replace`: the layer of Qwen3.5's class, whose q, k and v are one map of its input.

conversion.md 2 A: norm weights of q and k are folded into the map's rows, keys and values are repeated by head. What
such a layer has no place for goes: biases, and the factor by which a norm divides, which the memory's own L2 norm makes
up for but for the SiLU between them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx

from sleepc.errors import UsageError
from sleepc.ir.graph import Graph, is_call
from sleepc.ir.program import BlockClass, ProgramGraphs
from sleepc.passes.analysis.find_sites import RELAYOUTS, Site
from sleepc.passes.analysis.projections import as_maps, projections
from sleepc.passes.blocks.drop_unused_params import DropUnusedParams
from sleepc.passes.lib.emit import Emit, aten
from sleepc.passes.lib.match import constant, factors, normed
from sleepc.passes.rewrite.memory import Made

CASTS = (aten.to.dtype, aten._to_copy.default)
TRIED = 4  # random inputs on which a map is compared with what it was read from


def epsilon_of(site: Site, where: str) -> float:
    """That of the RMS norm whose result the layer reads. Raises UsageError if it reads that of none."""
    for value in _parts_of(site.x):
        if is_call(value, aten.rms_norm.default):
            given = constant(value.args[3]) if len(value.args) > 3 else None
            return torch.finfo(value.meta["type"].dtype).eps if given is None else given
        found = normed(value)
        if found is not None:
            return found[1]
    raise _not_native("its input is not the result of an RMS norm", where)


def check_output(site: Site, where: str) -> None:
    """Raises UsageError unless all that reads the attention is a linear map without a bias."""
    node = site.node
    while len(node.users) == 1 and is_call(next(iter(node.users)), *RELAYOUTS, aten.contiguous.default):
        node = next(iter(node.users))
    reader = next(iter(node.users)) if len(node.users) == 1 else None
    if not is_call(reader, aten.linear.default, aten.matmul.default, aten.mm.default, aten.addmm.default):
        raise _not_native("what attention gives is not read by a linear map alone", where)
    assert reader is not None
    if is_call(reader, aten.addmm.default) or (len(reader.args) > 2 and reader.args[2] is not None):
        raise _not_native("its output projection has a bias", where)


def folded(wake: Graph, site: Site, where: str) -> Made:
    """What makes q|k|v [channels, hidden] of a block's parameters, without the factors of norms and without biases:
    keys and values of every query head. Raises UsageError, when it is asked for values, for what is no linear map of x.
    """
    part = projections(wake)
    for result in ("q", "k"):
        _drop_norm(part, result)
    copies = site.q_heads // site.kv_heads

    def made(own: Mapping[str, Tensor]) -> Tensor:
        dtype = torch.promote_types(part.ports()["x"].meta["type"].dtype, torch.float32)
        generator = torch.Generator().manual_seed(0)
        some = torch.randn(1, TRIED, int(site.x.meta["type"].dims[2]), generator=generator, dtype=dtype)
        maps = as_maps(part, own, some, dtype)
        if maps is None:
            raise _not_native("its queries, keys or values are not linear in its input", where)
        repeated = (maps["q"], *(maps[name].repeat_interleave(copies, 0) for name in ("k", "v")))
        return torch.cat([rows.flatten(0, 1) for rows in repeated])

    return made


def drop_unread(program: ProgramGraphs, cls: BlockClass) -> None:
    """Forget the projections, biases and norms that no graph of the class reads now."""
    ports: dict[str, list[fx.Node]] = {}
    for graph in cls.graphs():
        for name, node in graph.ports("param").items():
            ports.setdefault(name, []).append(node)
    unread = {name for name, nodes in ports.items() if not any(node.users for node in nodes)}
    for name in unread:
        for node in ports[name]:
            node.graph.erase_node(node)
    for i, block in enumerate(program.layout):
        if program.classes[block.cls] is cls:
            kept = {port: key for port, key in block.params.items() if port not in unread}
            program.layout[i] = type(block)(block.cls, kept)
    DropUnusedParams().run(program)


def _parts_of(x: fx.Node) -> list[fx.Node]:
    """A value and, of a product, its factors, each without its casts."""
    x = _uncast(x)
    if not is_call(x, aten.mul.Tensor):
        return [x]
    return [x, *(_uncast(a) for a, _ in factors(x) if isinstance(a, fx.Node))]


def _uncast(node: fx.Node) -> fx.Node:
    while is_call(node, *CASTS):
        node = node.all_input_nodes[0]
    return node


def _drop_norm(part: Graph, result: str) -> None:
    """Of a norm that gives q or k, x / sqrt(mean x² + eps) becomes x: the weight that it is multiplied by stays."""
    node = part.results()[result]
    while is_call(node, *RELAYOUTS, *CASTS, aten.contiguous.default):
        node = node.all_input_nodes[0]
    for value in _parts_of(node):
        found = normed(value)
        if found is not None:
            value.replace_all_uses_with(found[0])
        elif is_call(value, aten.rms_norm.default):
            x, weight = value.args[0], value.args[2] if len(value.args) > 2 else None
            assert isinstance(x, fx.Node)
            scaled = x if weight is None else Emit(part, value.meta.get("source", ""), value).mul(x, weight)
            value.replace_all_uses_with(scaled)
    part.drop_dead()


def _not_native(what: str, where: str) -> UsageError:
    return UsageError(
        f"no native layer can be made of it: {what}",
        where=where,
        fix="Use --layout graph, or leave the layer (overrides: strategy: leave).",
    )
