"""What an error about a graph shows: a code, the place, and a few lines of program."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import fx

from sleepc.errors import SleepcError
from sleepc.ir.graph import Graph
from sleepc.ir.types import DTYPE_NAMES

CONTEXT = 4


class InvalidProgram(SleepcError):
    """A rule of validity is broken. `code` names the rule (docs/ir.md)."""

    def __init__(self, code: str, what: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(f"{code}: {what}", where=where, fix=fix)
        self.code = code


def fault(code: str, what: str, graph: Graph, node: fx.Node | None = None) -> InvalidProgram:
    """An InvalidProgram about `node`, with the program around it."""
    if node is None:
        return InvalidProgram(code, what, where=f"graph {graph.name}")
    source = node.meta.get("source")
    where = f"graph {graph.name}" + (f", {source}" if source else "")
    return InvalidProgram(code, what, where=where, fix=excerpt(graph, node))


def excerpt(graph: Graph, node: fx.Node) -> str:
    """The lines around `node`, which is marked, as readable as a broken graph allows."""
    nodes = list(graph.fx.nodes)
    numbers = {n: f"%{i}" for i, n in enumerate(nodes)}
    if node not in numbers:
        return f"    the node {node} is not in graph {graph.name}"
    at = nodes.index(node)
    lines = []
    for n in nodes[max(at - CONTEXT, 0) : at + CONTEXT + 1]:
        lines.append(("  > " if n is node else "    ") + describe(n, numbers))
    return "\n".join(lines)


def describe(node: fx.Node, numbers: dict[fx.Node, str]) -> str:
    """One node as text, whatever it holds; only for people."""
    arguments = [_show(a, numbers) for a in node.args]
    arguments += [f"{k}={_show(v, numbers)}" for k, v in node.kwargs.items()]
    if node.op == "output":
        return f"return {', '.join(arguments)}"
    port = node.meta.get("port")
    target = str(node.target).removesuffix(".default") if node.op == "call_function" else node.op
    body = f"{port.kind} {json.dumps(port.name)}" if port else f"{target}({', '.join(arguments)})"
    source = node.meta.get("source")
    return f"{numbers[node]}: {node.meta.get('type', '?')} = {body}" + (f"  # {source}" if source else "")


def _show(value: Any, numbers: dict[fx.Node, str]) -> str:
    if isinstance(value, fx.Node):
        return numbers.get(value, f"<{value} of another graph>")
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_show(v, numbers) for v in value)}]"
    if isinstance(value, torch.dtype):
        return DTYPE_NAMES.get(value, str(value))
    return json.dumps(value) if isinstance(value, str) else repr(value)
