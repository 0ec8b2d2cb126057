"""Level ATEN: torch's example values of an exported graph as types, and example values for a graph that was read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from sleepc.errors import SleepcError
from sleepc.ir import dims
from sleepc.ir.diagnose import fault
from sleepc.ir.graph import Graph
from sleepc.ir.interp import value_of
from sleepc.ir.types import EXPORTED_NAMES, IntType, TensorType, TupleType

EXAMPLE = (3, 5)  # rows and tokens: different, and none of 0 and 1, which torch would take for constants


def exported_types(graph: Graph) -> dict[fx.Node, str]:
    """The type of every node that has an example value and no type, as text; torch's names of batch and length become
    B and T. What gives nothing (an assertion) is `()`; a value that is not a tensor, tensors or a size is `?`.
    """
    names = _names(graph)
    found = {node: _type(node.meta["val"], names) for node in graph.fx.nodes if _is_exported(node)}
    return {node: "?" if type_ is None else str(type_) for node, type_ in found.items()}


def _is_exported(node: fx.Node) -> bool:
    return "val" in node.meta and node.meta.get("type") is None


def _names(graph: Graph) -> dict[str, str]:
    """torch's names of the sizes of the inputs [B,T]."""
    shapes = [v.shape for p in graph.ports("input").values() if isinstance(v := p.meta.get("val"), Tensor)]
    return {str(size): name for shape in shapes for size, name in zip(shape, "BT", strict=False)}


def _type(value: Any, names: Mapping[str, str]) -> TensorType | TupleType | IntType | None:
    if value is None:
        return TupleType(())
    if isinstance(value, (tuple, list)):
        items = [_type(each, names) for each in value]
        return TupleType(tuple(items)) if all(isinstance(each, TensorType) for each in items) else None  # type: ignore[arg-type]
    if isinstance(value, Tensor):
        sizes = [_size(size, names) for size in value.shape]
        return TensorType(value.dtype, tuple(sizes)) if value.dtype in EXPORTED_NAMES else None
    return IntType() if isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool) else None


def _size(size: Any, names: Mapping[str, str]) -> dims.Dim:
    """A size as a polynomial over B and T, or torch's own words for it if it is not one."""
    if isinstance(size, int):
        return size
    text = re.sub(r"[A-Za-z_][A-Za-z0-9_]*", lambda found: names.get(found[0], found[0]), str(size)).replace(" ", "")
    try:
        return dims.format_dim(dims.parse_dim(text))
    except SleepcError:
        return text


def note_values(graph: Graph) -> None:
    """Give every node of a graph that was read the example value that torch.export would have given it.

    Ports' sizes may be numbers, B and T. Raises SleepcError (V12) if a value has another type than the text says.
    """
    mode = FakeTensorMode(shape_env=ShapeEnv())
    dynamic: StatelessSymbolicContext[Any, Any] = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC] * 2)
    rows = mode.from_tensor(torch.zeros(EXAMPLE), symbolic_context=dynamic)
    sizes = dict(zip("BT", rows.shape, strict=True))
    names = {str(size): name for name, size in sizes.items()}
    with mode:
        for node in graph.fx.nodes:
            written = node.meta.pop("type", None)
            if node.op == "placeholder":
                node.meta["val"] = _example(written, sizes)
            elif node.op == "call_function":
                node.meta["val"] = example_of(node)
                found = _type(node.meta["val"], names)
                if str(found) != str(written):
                    raise fault("V12", f"the text says {written}, torch {found}", graph, node)


def example_of(node: fx.Node) -> Any:
    """What the node's operator gives on the example values of its arguments, sizes kept symbolic.

    By Python's decompositions: some of those in C++ ask for numbers instead of sizes (torch 2.11).
    """
    with enable_python_dispatcher():
        return value_of(node, lambda n: NotImplemented if n is node else n.meta["val"])


def _example(type_: Any, sizes: Mapping[str, Any]) -> Tensor:
    assert isinstance(type_, TensorType), type_
    shape = [size if isinstance(size, int) else dims.evaluate(dims.parse_dim(size), sizes) for size in type_.dims]
    return torch.empty(shape, dtype=type_.dtype)
