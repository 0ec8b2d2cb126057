"""What stands at a graph's ports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sleepc.backends.onnx.weights import Weight
from sleepc.ir.graph import Graph


def ports_of(graph: Graph, values: Mapping[str, Any], params: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What stands at a graph's ports: values by name; parameters by `params` (port -> key) or by their own name."""
    found: dict[str, Any] = {}
    for name, node in graph.ports().items():
        if node.meta["port"].kind in ("param", "const"):
            found[name] = Weight(params[name] if params else name)
        else:
            found[name] = values[name]
    return found
