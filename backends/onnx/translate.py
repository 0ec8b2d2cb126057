"""A graph of the program -> ONNX nodes, call by call."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import fx

from sleepc.backends.onnx import (  # noqa: F401  (they fill the tables)
    aten,
    aten_activations,
    aten_indexing,
    aten_integers,
    aten_reductions,
    aten_shapes,
    linear,
    memory,
    norms,
    rotary,
    windows,
)
from sleepc.backends.onnx.call import FUSED, TRANSLATIONS, Call, Style, ours
from sleepc.backends.onnx.emit import Emitter, declare
from sleepc.backends.onnx.weights import Weight
from sleepc.errors import UsageError
from sleepc.ir.dims import Polynomial, add, format_dim, multiply, parse_dim
from sleepc.ir.graph import Graph, is_call
from sleepc.ir.levels import operator_name
from sleepc.ir.types import IntType, TensorType


@dataclass(frozen=True)
class SlotsWritten:
    """A state's new value as what goes into its slots: new [B, H, T, ..]."""

    new: ir.Value


def translate(
    e: Emitter,
    graph: Graph,
    ports: Mapping[str, Any],
    style: Style,
    passes: ir.Value | None = None,
    columns: Collection[str] = (),
) -> dict[str, Any]:
    """Write the graph's calls after those that are there; ports (values, or `Weight`s) by name -> results by name.
    States of `columns` (see is_column) come as SlotsWritten.

    Raises UsageError for an operator that this backend does not know.
    """
    values: dict[fx.Node, Any] = {node: ports[name] for name, node in graph.ports().items()}
    written = {graph.results()[name] for name in columns}
    for node in graph.calls():
        if node in written:
            call = Call(e, node, values, style)
            values[node] = SlotsWritten(call.tensor(1, call.type(0).dtype))
            continue
        values[node] = _call(Call(e, node, values, style, passes))
    return {name: _as_value(e, values[node], node) for name, node in graph.results().items()}


def _as_value(e: Emitter, value: Any, node: fx.Node) -> Any:
    if isinstance(value, SlotsWritten):
        return value
    value = e.weight(value.key) if isinstance(value, Weight) else value
    if value.producer() is not None:
        declare(value, e.named(node.meta["type"]))
    return value


def _call(call: Call) -> Any:
    node, target = call.node, call.node.target
    if target is operator.getitem:
        return call.raw(0)[call.raw(1)]
    if isinstance(node.meta["type"], IntType):
        return _size(call)
    if call.style.ops == "ort":
        fusion = FUSED.get(target)
        found = fusion(call) if fusion is not None else None
        if found is not None:
            return _declared(call.e, found, node)
    if target not in TRANSLATIONS:
        raise UsageError(
            f"the ONNX backend has no translation of {operator_name(target)}",
            where=str(node.meta.get("source", "")),
            fix="Run this program with the eager backend.",
        )
    results = TRANSLATIONS[target](call)
    return _declared(call.e, results, node) if isinstance(results, ir.Value) else results


def _size(call: Call) -> int | str | None:
    """A size as a number or the text of its dimension; None if it is neither, as when sizes are divided.
    (Shapes of results come from their types, so few operators ask.)
    """
    target = call.node.target
    if target is torch.ops.aten.sym_size.int:
        return call.type(0).dims[int(call.raw(1))]
    sides = [call.values[side] if isinstance(side, fx.Node) else side for side in call.node.args]
    if None in sides or target not in SIZES:
        return None
    return format_dim(SIZES[target](*(parse_dim(str(side)) for side in sides)))


MINUS: Polynomial = {(): -1}
SIZES: dict[Any, Callable[..., Polynomial]] = {
    operator.add: add,
    operator.mul: multiply,
    operator.sub: lambda a, b: add(a, multiply(b, MINUS)),
    operator.neg: lambda a: multiply(a, MINUS),
}


def _declared(e: Emitter, value: ir.Value, node: fx.Node) -> ir.Value:
    type_ = node.meta["type"]
    if isinstance(type_, TensorType) and value.shape is None:
        declare(value, e.named(type_))
    return value


def is_column(graph: Graph, state: str) -> bool:
    """Is the state's new value the old one, or a copy of it, with some slots written, which nobody else reads?"""
    node = graph.results().get(state)
    own = graph.ports("state").get(state)
    if node is None or not is_call(node, ours.write_slots.default):
        return False
    old = node.args[0]
    if isinstance(old, fx.Node) and is_call(old, torch.ops.aten.clone.default):
        (old,) = old.all_input_nodes  # later blocks read it, and the host writes after all of them
    return old is own and len(node.users) == 1
