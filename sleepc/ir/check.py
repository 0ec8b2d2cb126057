"""The rules of a valid graph. Each has a code, which docs/ir.md explains and tests name.

V01 order: ports, calls, one output; every value defined before its use, in this graph
V02 every placeholder is a port, and ports have different names
V03 nothing but placeholders, calls and the output
V04 every operator is in the level's table
V05 no operator mutates its arguments
V10 every value has a type
V11 every operator accepts its arguments                 (full)
V12 a recorded type is the one that inference gives      (full)
V13 sizes are constants or made of the names that ports declare
V14 no size is tied to one value                         (full)
V22 a result with a state port's name has the port's type
V24 a state is not read after the call that writes its new value, so that it may be written in place
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import fx

from sleepc.errors import SleepcError
from sleepc.ir import dims, levels
from sleepc.ir.diagnose import InvalidProgram, fault
from sleepc.ir.graph import Graph, Port
from sleepc.ir.infer import infer_types
from sleepc.ir.types import IntType, TensorType, TupleType

__all__ = ["InvalidProgram", "check_graph"]

_TORCH_NAMES = re.compile(r"[suz][0-9]+")  # of torch's own symbols: a leak from a trace


def check_graph(graph: Graph, level: str, full: bool) -> None:
    """Raise InvalidProgram, whose `code` is the broken rule, unless `graph` is valid at `level`.

    `full` also infers every type anew (milliseconds a node); the graph is not changed.
    """
    _check_order(graph)
    _check_ports(graph)
    for node in graph.calls():
        _check_operator(graph, node, level)
    _check_types(graph)
    if full:
        _check_inference(graph)
    _check_states(graph)


def _check_order(graph: Graph) -> None:
    seen: set[fx.Node] = set()
    stage = 0
    for node in graph.fx.nodes:
        if node.op not in ("placeholder", "call_function", "output"):
            raise fault("V03", f"{node.op} is not allowed", graph, node)
        if any(source not in seen for source in node.all_input_nodes):
            raise fault("V01", "a value is used before it is defined", graph, node)
        at = ("placeholder", "call_function", "output").index(node.op)
        if at < stage or stage == 2:
            raise fault("V01", f"{node.op} after {'the output' if stage == 2 else 'a call'}", graph, node)
        stage = at
        seen.add(node)
    if stage != 2:
        raise fault("V01", "there is no output", graph)
    _check_output(graph)


def _check_output(graph: Graph) -> None:
    output = graph.output()
    results = output.args[0] if len(output.args) == 1 else None
    if not isinstance(results, tuple) or not all(isinstance(r, fx.Node) for r in results):
        raise fault("V01", "the output is not a tuple of values", graph, output)
    if len(results) != len(graph.returns):
        what = f"{len(graph.returns)} names for {len(results)} results"
        raise fault("V01", what, graph, output)
    if len(set(graph.returns)) != len(results):
        raise fault("V01", "two results have one name", graph, output)


def _check_ports(graph: Graph) -> None:
    seen: set[str] = set()
    for node in graph.fx.nodes:
        if node.op != "placeholder":
            continue
        port = node.meta.get("port")
        if not isinstance(port, Port):
            raise fault("V02", "a placeholder is not a port", graph, node)
        if port.name in seen:
            raise fault("V02", f"two ports are named {port.name!r}", graph, node)
        seen.add(port.name)


def _check_operator(graph: Graph, node: fx.Node, level: str) -> None:
    if levels.mutates(node.target):
        raise fault("V05", f"{node.target} mutates its arguments", graph, node)
    if not levels.is_allowed(node.target, level):
        raise fault("V04", f"{node.target} is not an operator of level {level}", graph, node)


def _check_types(graph: Graph) -> None:
    declared: set[str] = set()
    for node in graph.fx.nodes:
        if node.op == "output":
            continue
        type_ = node.meta.get("type")
        if not isinstance(type_, (TensorType, TupleType, IntType)):
            raise fault("V10", "a value has no type", graph, node)
        if node.op == "placeholder" and not isinstance(type_, TensorType):
            raise fault("V10", "a port is not a tensor", graph, node)
        names = {name for dim in _dims_of(type_) for name in _checked_dim(graph, node, dim)}
        if node.op == "placeholder":
            declared |= {name for name in names if not _TORCH_NAMES.fullmatch(name)}
        if names - declared:
            what = f"no port declares the size {', '.join(sorted(names - declared))}"
            raise fault("V13", what, graph, node)


def _dims_of(type_: TensorType | TupleType | IntType) -> Iterator[dims.Dim]:
    if isinstance(type_, TensorType):
        yield from type_.dims
    elif isinstance(type_, TupleType):
        for item in type_.items:
            yield from item.dims


def _checked_dim(graph: Graph, node: fx.Node, dim: object) -> set[str]:
    """The names in a size."""
    if isinstance(dim, int) and not isinstance(dim, bool) and dim >= 0:
        return set()
    if not isinstance(dim, str):
        raise fault("V13", f"not a size: {dim!r}", graph, node)
    try:
        canonical = dims.format_dim(dims.parse_dim(dim))
    except SleepcError as error:
        raise fault("V13", error.what, graph, node) from error
    if canonical != dim:
        raise fault("V13", f"the size {dim} is written {canonical}", graph, node)
    return dims.names_of(dim)


def _check_inference(graph: Graph) -> None:
    fresh = graph.clone()
    infer_types(fresh)
    for node, anew in zip(graph.fx.nodes, fresh.fx.nodes, strict=True):
        # as text: comparing symbolic sizes could tie them to a value
        recorded, inferred = str(node.meta.get("type")), str(anew.meta.get("type"))
        if recorded != inferred:
            raise fault("V12", f"the type is {inferred}, not {recorded}", graph, node)


def _check_states(graph: Graph) -> None:
    results = graph.results()
    for name, port in graph.ports("state").items():
        result = results.get(name)
        if result is not None and str(result.meta["type"]) != str(port.meta["type"]):
            what = f"state {name!r} is {port.meta['type']} and becomes {result.meta['type']}"
            raise fault("V22", what, graph, result)
        _check_last_use(graph, name, port)


def _check_last_use(graph: Graph, name: str, port: fx.Node) -> None:
    same = {port}  # values that share the state's memory
    written = False
    for node in graph.fx.nodes:
        if written and same.intersection(node.all_input_nodes):
            raise fault("V24", f"state {name!r} is read after it is written", graph, node)
        if node.args and node.args[0] in same:
            if levels.makes_view(node.target):
                same.add(node)
            written = written or levels.writes_state(node.target)
