"""Pairs (k, v) that attention sees in addition to its sinks and its ring. Which token such a slot holds does not follow
from how much was read: it is state, for each head, and so is who sees it.
"""

from __future__ import annotations

import torch
from torch import fx

from sleepc.errors import UsageError
from sleepc.ir.graph import Graph
from sleepc.ir.states import StateSpec
from sleepc.ir.types import TensorType
from sleepc.passes.analysis.find_sites import Site
from sleepc.passes.lib.emit import Emit, aten

QUERIES = "query_positions"  # what embed hands on: positions [B,T] of the new tokens, -1 at padding
Seen = tuple[fx.Node, fx.Node, fx.Node]
"""What a window's attention sees besides the new tokens: keys, values, and the mask of those and of the new tokens."""


def can_keep(site: Site) -> bool:
    """Does the layer's own mask let it see what is far? A layer that has never seen such keys keeps none."""
    return not site.mask.parts


def kept_specs(site: Site, slots: int, dtype: torch.dtype) -> tuple[StateSpec, ...]:
    """The states of so many slots of every KV head: k, v, and the positions of the tokens, -1 in an empty slot. Wake
    reads them; what a sleep makes of them the consolidation says.
    """
    dims = ("B", site.kv_heads, slots)
    return (
        StateSpec("kept", "k", (*dims, site.d_k), dtype, "overwrite"),
        StateSpec("kept", "v", (*dims, site.d_v), dtype, "overwrite"),
        StateSpec("kept", "position", dims, torch.int64, "overwrite", -1),
    )


def see_kept(graph: Graph, site: Site, specs: tuple[StateSpec, ...], length: int, window: Seen) -> Seen:
    """`window` of `length` tokens with the kept pairs in front of it. A query at t sees the pair of position p if
    p <= t - length: pairs that the window still holds are seen there.

    Raises UsageError where scores fall with distance: their numbers are made for the positions of a window.
    """
    if site.slopes:
        raise UsageError(
            "pairs are kept in addition to the window, and this layer's scores fall with distance",
            where=str(site.node.meta.get("source", "")),
            fix="Use --consolidation replay.",
        )
    e = Emit(graph, str(site.node.meta.get("source", "")), site.node)
    queries = graph.add_port("input", QUERIES, TensorType(torch.int64, ("B", "T")))
    k, v, position = (graph.add_port("state", spec.name, spec.type()) for spec in specs)
    last = e.unsqueeze(e.call(aten.sub.Scalar, queries, length), 1, -1)
    at = e.unsqueeze(position, 2)
    seen = e.call(aten.logical_and.default, e.call(aten.ge.Scalar, at, 0), e.call(aten.le.Tensor, at, last))
    if site.q_heads > site.kv_heads:
        seen = e.call(aten.repeat_interleave.self_int, seen, site.q_heads // site.kv_heads, 1)
    k_window, v_window, mask = window
    mask = e.call(aten.expand.default, mask, [-1, site.q_heads, -1, -1])

    def joined(kept: fx.Node, others: fx.Node, dim: int) -> fx.Node:
        return e.call(aten.cat.default, [kept, others], dim)

    return joined(k, k_window, 2), joined(v, v_window, 2), joined(seen, mask, -1)
