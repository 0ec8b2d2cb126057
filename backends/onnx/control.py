"""Graphs inside graphs: what is repeated, and what is chosen while a graph runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir
import torch

from sleepc.backends.onnx.emit import Emitter, declare
from sleepc.ir.types import TensorType


def repeat(
    e: Emitter,
    passes: ir.Value,
    start: Sequence[ir.Value],
    body: Callable[[Sequence[ir.Value]], Sequence[ir.Value]],
    *,
    while_any: bool = False,
) -> Sequence[ir.Value]:
    """`body` passes - 1 times, as a Loop; passes is an int64 without dimensions. With `while_any` only for as long as
    the last of the results, bool [B], holds in a row.
    """
    count = e.once(("again", passes.name), lambda: e("Sub", passes, e.const(1, torch.int64)))
    e.loops += 1
    tag = f"{e.prefix}loop.{e.loops}"
    kinds = [ir.TensorType(ir.DataType.INT64), ir.TensorType(ir.DataType.BOOL)]
    number, go = (ir.Value(name=f"{tag}.{n}", shape=ir.Shape([]), type=t) for n, t in zip("ig", kinds, strict=True))
    carried = [ir.Value(name=f"{tag}.{i}", shape=v.shape, type=v.type) for i, v in enumerate(start)]
    with e.inside() as nodes:
        results = body(carried)
        results = _own(e, nodes, results)
        on = _holds_in_a_row(e, results[-1]) if while_any else e("Identity", go)
    for value, result in zip(carried, results, strict=True):
        result.shape, result.type = value.shape, value.type
    on.shape, on.type = go.shape, go.type
    graph = ir.Graph([number, go, *carried], [on, *results], nodes=nodes, name=tag)
    return e.several("Loop", len(start), count, e.const(True, torch.bool), *start, body=graph)


def _holds_in_a_row(e: Emitter, rows: ir.Value) -> ir.Value:
    """bool [B] -> bool []."""
    found = e("ReduceMax", e.cast(rows, torch.float32), keepdims=0)
    return e("Greater", found, e.const(0.0, torch.float32))


def choose(
    e: Emitter,
    condition: ir.Value,
    then: Callable[[], Sequence[ir.Value]],
    otherwise: Callable[[], Sequence[ir.Value]],
    types: Callable[[], Sequence[TensorType]],
) -> Sequence[ir.Value]:
    """`then` if the condition, bool [], holds, else `otherwise`; both make values of `types`, which is asked after
    them.
    """
    e.loops += 1
    branches = []
    for name, make in (("then", then), ("else", otherwise)):
        with e.inside() as nodes:
            results = _own(e, nodes, make())
        for value, type_ in zip(results, types(), strict=True):
            declare(value, type_)
        branches.append(ir.Graph([], results, nodes=nodes, name=f"{e.prefix}{name}.{e.loops}"))
    count = len(branches[0].outputs)
    return e.several("If", count, condition, then_branch=branches[0], else_branch=branches[1])


def _own(e: Emitter, nodes: Sequence[ir.Node], results: Sequence[ir.Value]) -> list[ir.Value]:
    """Results of an inner graph: each is made in it, and none is there twice."""
    made = {id(node) for node in nodes}
    own: list[ir.Value] = []
    for value in results:
        ready = id(value.producer()) in made and not any(value is other for other in own)
        own.append(value if ready else e("Identity", value))
    return own


def is_one_token(e: Emitter) -> ir.Value:
    """Is T = 1? bool []."""
    size: ir.Value = e.sizes["T"]
    return e("Equal", e("Squeeze", size, e.ints(0)), e.const(1, torch.int64))
