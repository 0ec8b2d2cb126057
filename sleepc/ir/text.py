"""Graphs as text, printed and parsed back (docs/ir.md has the grammar).

    graph block.0 {
      %0: f32[B,T,576] = input "h"
      %1: f32[576,576] = param "p0"
      %2: f32[B,T,576] = aten.linear(%0, %1, None)  # layers.0.q_proj
      return "h"=%2
    }

Parsing looks names up in a level's table and does nothing else: a text can name no other code.
"""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from sleepc.errors import SleepcError
from sleepc.ir import dims
from sleepc.ir.diagnose import excerpt
from sleepc.ir.exported import exported_types, note_values
from sleepc.ir.graph import Graph, Port
from sleepc.ir.levels import PLACEMENT, SIZE_OPERATORS, operator, operator_name
from sleepc.ir.tokens import GRAPH_NAME, Cursor
from sleepc.ir.types import DTYPE_NAMES, DTYPES, EXPORTED_DTYPES, EXPORTED_NAMES, IntType, TensorType, TupleType, Type

MAX_BYTES = 16 * 2**20
MAX_NESTING = 8
KINDS = ("input", "param", "const", "state")


# Printing


def print_graph(graph: Graph, level: str = "STEP") -> str:
    """The text of a graph; at level ATEN, types are those of torch's example values (exported.py). A node without type
    gets `?`, which parse_graph refuses.

    Raises SleepcError for what has no text: unusual literals and names, and beyond level ATEN devices and layouts.
    """
    if not GRAPH_NAME.fullmatch(graph.name):
        raise SleepcError(f"not a name of a graph: {graph.name!r}")
    numbers = {node: f"%{i}" for i, node in enumerate(graph.fx.nodes)}
    types = {node: node.meta.get("type", "?") for node in graph.fx.nodes} | exported_types(graph)
    lines = [f"graph {graph.name} {{"]
    for node in graph.fx.nodes:
        try:
            lines.append("  " + _print_node(graph, node, numbers, types[node], level))
        except SleepcError as error:
            error.add_note(excerpt(graph, node))
            raise
    return "\n".join([*lines, "}", ""])


def _print_node(graph: Graph, node: fx.Node, numbers: dict[fx.Node, str], type_: object, level: str) -> str:
    if node.op == "output":
        return f"return {', '.join(_print_results(graph, numbers))}".rstrip()
    if node.op == "placeholder":
        port = node.meta["port"]
        body = f"{port.kind} {json.dumps(port.name)}"
    elif node.op == "call_function":
        body = f"{operator_name(node.target)}({', '.join(_print_arguments(node, numbers, level))})"
    else:
        raise SleepcError(f"{node.op} has no text form")
    # one line, in characters that every file can hold
    source = " ".join(str(node.meta.get("source") or "").split())
    comment = f"  # {source.encode('ascii', 'backslashreplace').decode()}" if source else ""
    return f"{numbers[node]}: {type_} = {body}{comment}"


def _print_results(graph: Graph, numbers: dict[fx.Node, str]) -> list[str]:
    return [f"{json.dumps(name)}={numbers[node]}" for name, node in graph.results().items()]


def _print_arguments(node: fx.Node, numbers: dict[fx.Node, str], level: str) -> list[str]:
    placed = next((name for name in node.kwargs if name in PLACEMENT), None)
    if placed and level != "ATEN":
        raise SleepcError(f"the argument {placed} has no text form", where=str(node.target))
    printed = [_print_literal(a, numbers, level) for a in node.args]
    return [*printed, *(f"{name}={_print_literal(value, numbers, level)}" for name, value in node.kwargs.items())]


def _print_literal(value: Any, numbers: dict[fx.Node, str], level: str) -> str:
    """An argument: a node, None, a bool, int, float, text, dtype or list of these (nested)."""
    if isinstance(value, fx.Node):
        return numbers[value]
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_print_literal(v, numbers, level) for v in value)}]"
    if value is None or type(value) in (bool, float):
        return repr(value)
    if type(value) is int and -dims.MAX_INT <= value < dims.MAX_INT:
        return repr(value)
    if type(value) is str:
        return json.dumps(value)
    if isinstance(value, torch.dtype) and value in DTYPE_NAMES:
        return DTYPE_NAMES[value]
    if level == "ATEN" and (word := _print_placed(value)):
        return word
    raise SleepcError(f"the argument {value!r} has no text form")


def _print_placed(value: Any) -> str:
    """What is not a literal beyond level ATEN: complex dtypes, devices, layouts; "" for anything else."""
    if isinstance(value, torch.dtype):
        return EXPORTED_NAMES.get(value, "")
    return next((f'{kind}("{name}")' for (kind, name), known in _PLACES.items() if known == value), "")


# Parsing


def parse_graph(text: str, level: str) -> Graph:
    """The graph of a text. Its types are as written: check_graph proves them.

    Raises SleepcError, with line and column, for anything that is not exactly such a text.
    """
    if len(text) > MAX_BYTES:
        raise SleepcError(f"the text of a graph is longer than {MAX_BYTES} characters")
    graph = _Parser(Cursor(text), level).graph()
    if level == "ATEN":
        note_values(graph)
    return graph


class _Parser:
    """Recursive descent; one method for each rule of the grammar."""

    def __init__(self, tokens: Cursor, level: str) -> None:
        self.tokens, self.level = tokens, level
        self.nodes: dict[str, fx.Node] = {}
        self.ports: set[str] = set()
        self.called = False

    def graph(self) -> Graph:
        """'graph' name '{' statement* return '}'"""
        t = self.tokens
        t.expect("graph")
        self.into = Graph(t.graph_name())
        t.expect("{")
        t.end_line()
        while t.peek != "return":
            self.statement()
        self.results()
        t.expect("}")
        t.end_of_text()
        return self.into

    def statement(self) -> None:
        """%n ':' type '=' (kind string | operator '(' arguments ')')"""
        t = self.tokens
        number = t.take("node")
        if number in self.nodes:
            raise t.error(f"{number} is defined twice", back=1)
        t.expect(":")
        type_ = self.type()
        t.expect("=")
        node = self.port() if t.peek in KINDS else self.call()
        node.meta["type"] = type_
        source = t.end_line()
        if source:
            node.meta["source"] = source
        self.nodes[number] = node

    def port(self) -> fx.Node:
        t = self.tokens
        if self.called:
            raise t.error("a port after a call")
        kind = t.take("name")
        name = t.string()
        if name in self.ports:
            raise t.error(f"two ports are named {json.dumps(name)}", back=1)
        node = self.into.fx.placeholder(f"{kind}_{len(self.ports)}")
        node.meta["port"] = Port(kind, name)  # type: ignore[arg-type]  # `statement` saw a kind
        self.ports.add(name)
        return node

    def call(self) -> fx.Node:
        t = self.tokens
        name = t.take("name")
        try:
            target = operator(name, self.level)
        except SleepcError as error:
            raise t.error(error.what, back=1, fix=error.fix) from error
        self.called = True
        args, kwargs = self.arguments()
        problem = _misfit(name, target, args, kwargs)
        if problem:
            raise t.error(f"{name}: {problem}", back=1)
        return self.into.fx.call_function(target, tuple(args), kwargs)

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """'(' [argument (',' argument)*] ')' with argument = value | name '=' value, named last"""
        t = self.tokens
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        t.expect("(")
        while t.peek != ")":
            if args or kwargs:
                t.expect(",")
            if not t.is_keyword():
                if kwargs:
                    raise t.error("an argument without name after one with name")
                args.append(self.value(0))
                continue
            name = t.take("name")
            if name in kwargs or (name in PLACEMENT and self.level != "ATEN"):
                raise t.error(f"the argument {name} is not allowed here", back=1)
            t.expect("=")
            kwargs[name] = self.value(0)
        t.expect(")")
        return args, kwargs

    def value(self, depth: int) -> Any:
        """A node, a literal, or a list of values."""
        t = self.tokens
        if t.kind == "node":
            return self.node()
        if t.kind == "string":
            return t.string()
        if t.peek == "[":
            if depth == MAX_NESTING:
                raise t.error("lists are nested too deep")
            return self.list_of_values(depth)
        if t.kind == "name" and t.peek in _WORDS:
            return _WORDS[t.take("name")]
        if t.kind == "name" and self.level == "ATEN":
            return self.placed()
        return t.number()

    def placed(self) -> Any:
        """complex dtype | word '(' string ')', at level ATEN: where or how a tensor lies"""
        t = self.tokens
        kind = t.take("name")
        if kind in EXPORTED_DTYPES:
            return EXPORTED_DTYPES[kind]
        t.expect("(")
        found = _PLACES.get((kind, t.string()))
        if found is None:
            raise t.error(f"unknown {kind[:80]}", back=1)
        t.expect(")")
        return found

    def list_of_values(self, depth: int) -> list[Any]:
        t = self.tokens
        t.expect("[")
        values: list[Any] = []
        while t.peek != "]":
            if values:
                t.expect(",")
            values.append(self.value(depth + 1))
        t.expect("]")
        return values

    def node(self) -> fx.Node:
        number = self.tokens.take("node")
        if number not in self.nodes:
            raise self.tokens.error(f"{number} is not defined before", back=1)
        return self.nodes[number]

    def type(self) -> Type:
        """'int' | tensor | '(' [tensor (',' tensor)*] ')'"""
        t = self.tokens
        if t.peek == "int":
            t.take("name")
            return IntType()
        if t.peek != "(":
            return self.tensor_type()
        t.expect("(")
        items: list[TensorType] = []
        while t.peek != ")":
            if items:
                t.expect(",")
            items.append(self.tensor_type())
        t.expect(")")
        return TupleType(tuple(items))

    def tensor_type(self) -> TensorType:
        """dtype '[' [size (',' size)*] ']'"""
        t = self.tokens
        name = t.take("name")
        dtypes = EXPORTED_DTYPES if self.level == "ATEN" else DTYPES
        if name not in dtypes:
            raise t.error(f"unknown type {name[:80]}", back=1)
        t.expect("[")
        sizes: list[dims.Dim] = []
        while t.peek != "]":
            if sizes:
                t.expect(",")
            sizes.append(self.size())
        t.expect("]")
        return TensorType(dtypes[name], tuple(sizes))

    def size(self) -> dims.Dim:
        """Text of names, integers, +, - and *, without spaces: `T+260`"""
        t = self.tokens
        try:
            size = dims.format_dim(dims.parse_dim(t.until(",]")))
        except SleepcError as error:
            raise t.error(error.what, back=1) from error
        if isinstance(size, int) and size < 0:
            raise t.error("a size is negative", back=1)
        return size

    def results(self) -> None:
        """'return' [string '=' %n (',' string '=' %n)*]"""
        t = self.tokens
        t.expect("return")
        results: dict[str, fx.Node] = {}
        while t.kind != "newline":
            if results:
                t.expect(",")
            name = t.string()
            if name in results:
                raise t.error(f"two results are named {json.dumps(name)}", back=1)
            t.expect("=")
            results[name] = self.node()
        t.end_line()
        self.into.set_returns(results)


_WORDS: dict[str, Any] = {
    "None": None,
    "True": True,
    "False": False,
    "inf": math.inf,
    "nan": math.nan,
    **DTYPES,
}
_PLACES: dict[tuple[str, str], Any] = {
    **{("device", name): torch.device(name) for name in ("cpu", "meta")},
    ("layout", "strided"): torch.strided,
    **{("memory_format", name): getattr(torch, name) for name in ("contiguous_format", "preserve_format")},
}


def _misfit(name: str, target: Any, args: list[Any], kwargs: dict[str, Any]) -> str:
    """Why the arguments cannot be those of the operator, as far as that is seen without types."""
    if isinstance(target, OpOverload):
        names = [a.name for a in target._schema.arguments]
        positional = [a.name for a in target._schema.arguments if not a.kwarg_only]
        unknown = set(kwargs) - set(names[len(args) :])
        if len(args) > len(positional) or unknown:
            return f"arguments that do not fit; it takes {', '.join(names)}"
        return ""
    numbers = [a for a in args if not isinstance(a, fx.Node)]
    if kwargs or any(type(a) is not int for a in numbers):
        return "takes nodes and integers only"
    if len(args) != (1 if name == "sym.neg" else 2):
        return "the number of arguments is wrong"
    if name not in SIZE_OPERATORS and not (isinstance(args[0], fx.Node) and type(args[1]) is int):
        return "takes a node and an integer"
    return ""
