"""Graphs that the tests of this folder share."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor, fx

import sleepc.ops  # noqa: F401  # registers our operators
from sleepc.ir.graph import Graph
from sleepc.ir.infer import infer_types
from sleepc.ir.types import TensorType

aten = torch.ops.aten
WIDTH, HEADS, HEAD = 12, 4, 3


def tensor(*dims: int | str, dtype: torch.dtype = torch.float32) -> TensorType:
    return TensorType(dtype, dims)


def call(graph: Graph, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    """One call before the output, with a source to find again in errors."""
    place = next((n for n in graph.fx.nodes if n.op == "output"), None)
    if place is None:
        node = graph.fx.call_function(target, args, kwargs)
    else:
        with graph.fx.inserting_before(place):
            node = graph.fx.call_function(target, args, kwargs)
    node.meta["source"] = f"layers.0 ({len(list(graph.fx.nodes))})"
    return node


def attention_block() -> Graph:
    """A block written by hand: fused projection, causal softmax attention, a residual sum."""
    g = Graph("block.0")
    h = g.add_port("input", "h", tensor("B", "T", WIDTH))
    weight = g.add_port("param", "qkv", tensor(3 * WIDTH, WIDTH))
    out = g.add_port("param", "out", tensor(WIDTH, WIDTH))
    b, t = call(g, aten.sym_size.int, h, 0), call(g, aten.sym_size.int, h, 1)
    fused = call(g, aten.linear.default, h, weight)
    parts = call(g, aten.split.Tensor, fused, WIDTH, -1)
    q, k, v = (_heads(g, call(g, operator.getitem, parts, i), b, t) for i in range(3))
    scores = call(g, aten.matmul.default, q, call(g, aten.transpose.int, k, 2, 3))
    scores = call(g, aten.mul.Tensor, scores, HEAD**-0.5)
    seen = call(g, aten.ones.default, [t, t], dtype=torch.bool)
    seen = call(g, aten.tril.default, seen)
    unseen = call(g, aten.logical_not.default, seen)
    scores = call(g, aten.masked_fill.Scalar, scores, unseen, -math.inf)
    mixed = call(g, aten.matmul.default, call(g, aten.softmax.int, scores, -1), v)
    mixed = call(g, aten.transpose.int, mixed, 1, 2)
    width = call(g, operator.mul, call(g, aten.sym_size.int, mixed, 2), HEAD)
    mixed = call(g, aten.reshape.default, mixed, [b, t, width])
    mixed = call(g, aten.linear.default, mixed, out)
    g.set_returns({"h": call(g, aten.add.Tensor, h, mixed)})
    infer_types(g)
    return g


def _heads(g: Graph, x: fx.Node, b: fx.Node, t: fx.Node) -> fx.Node:
    x = call(g, aten.view.default, x, [b, t, HEADS, HEAD])
    return call(g, aten.transpose.int, x, 1, 2)


def attention_eager(h: Tensor, qkv: Tensor, out: Tensor) -> Tensor:
    """What attention_block computes, by torch's own attention."""
    q, k, v = (x.view(*h.shape[:2], HEADS, HEAD).transpose(1, 2) for x in (h @ qkv.T).chunk(3, -1))
    mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return h + mixed.transpose(1, 2).flatten(2) @ out.T


def window_step(late_read: bool = False) -> Graph:
    """A state "k" that gets new slots; with `late_read` a view of the old is read afterwards."""
    g = Graph("window")
    new = g.add_port("input", "new", tensor("B", 2, "T", 4))
    slots = g.add_port("input", "slots", tensor("B", "T", dtype=torch.int64))
    state = g.add_port("state", "k", tensor("B", 2, 8, 4))
    turned = call(g, aten.transpose.int, state, 1, 2)
    early = call(g, aten.sum.default, turned)
    written = call(g, torch.ops.sleepc.write_slots.default, state, new, slots)
    total = call(g, aten.sum.default, turned) if late_read else early
    g.set_returns({"total": total, "k": written})
    infer_types(g)
    return g
