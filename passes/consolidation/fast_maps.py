"""A state beside a linear map: what sleeps have added to its weight, for each row."""

from __future__ import annotations

from torch import fx

from sleepc.ir.graph import Graph
from sleepc.passes.analysis.find_sites import dims
from sleepc.passes.analysis.linear_maps import LinearMap
from sleepc.passes.lib.emit import Emit, aten


def inputs_of(e: Emit, graph: Graph, one: LinearMap) -> fx.Node:
    """What the map reads, [B,T,in], also where the block has made one row of its rows."""
    h, width = graph.ports()["h"], dims(one.x)[-1]
    return e.reshape(one.x, [e.size(h, 0), e.size(h, 1), width]) if len(dims(one.x)) == 2 else one.x


def add_beside(e: Emit, one: LinearMap, read: fx.Node, fast: fx.Node) -> None:
    """W z becomes W z + Dᵀ u, for `fast` D [B,n,out] and `read` u [B,T,n] in its dtype."""
    written = e.call(aten.matmul.default, read, fast)
    if len(dims(one.call)) == 2:
        written = e.reshape(written, [-1, dims(one.call)[-1]])
    total = e.add(one.call, e.cast(written, one.call.meta["type"].dtype))
    one.call.replace_all_uses_with(total, delete_user_cb=lambda user: user is not total)
