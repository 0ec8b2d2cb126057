"""Write nodes into a graph as if they were function calls: `e = Emit(graph); y = e.linear(x, w)`."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

import sleepc.ops  # noqa: F401 (makes the operators that are written)
from sleepc.ir.graph import Graph
from sleepc.ir.levels import aten as aten


class Emit:
    """Appends calls before `before` (the output node by default), all with one provenance."""

    def __init__(self, graph: Graph, source: str, before: fx.Node | None = None) -> None:
        self.graph, self.source = graph, source
        self.before = before or graph.output()

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """One operator call."""
        with self.graph.fx.inserting_before(self.before):
            node = self.graph.fx.call_function(target, args, kwargs)
        node.meta["source"] = self.source
        return node

    def ours(self, name: str, *args: Any, **kwargs: Any) -> fx.Node:
        """One call of an operator of ours."""
        return self.call(getattr(torch.ops.sleepc, name).default, *args, **kwargs)

    def item(self, several: fx.Node, index: int) -> fx.Node:
        """One result of an operator with several."""
        return self.call(operator.getitem, several, index)

    def size(self, x: fx.Node, dim: int) -> fx.Node:
        """A size of x."""
        return self.call(aten.sym_size.int, x, dim)

    def add(self, a: Any, b: Any) -> fx.Node:
        """a + b."""
        return self.call(aten.add.Tensor, a, b)

    def sub(self, a: Any, b: Any) -> fx.Node:
        """a - b, b may be a number."""
        return self.call(aten.sub.Tensor, a, b)

    def mul(self, a: Any, b: Any) -> fx.Node:
        """a * b, b may be a number."""
        return self.call(aten.mul.Tensor, a, b)

    def neg(self, a: fx.Node) -> fx.Node:
        """-a."""
        return self.call(aten.neg.default, a)

    def linear(self, x: fx.Node, weight: fx.Node, bias: fx.Node | None = None) -> fx.Node:
        """x weightᵀ + bias."""
        return self.call(aten.linear.default, x, weight, bias)

    def cast(self, x: fx.Node, dtype: torch.dtype) -> fx.Node:
        """x in another dtype."""
        return self.call(aten.to.dtype, x, dtype)

    def transpose(self, x: fx.Node, a: int, b: int) -> fx.Node:
        """x with two dimensions exchanged."""
        return self.call(aten.transpose.int, x, a, b)

    def reshape(self, x: fx.Node, shape: list[Any]) -> fx.Node:
        """x in another shape."""
        return self.call(aten.reshape.default, x, shape)

    def unsqueeze(self, x: fx.Node, *dims: int) -> fx.Node:
        """x with dimensions of size 1 inserted, one after the other."""
        for dim in dims:
            x = self.call(aten.unsqueeze.default, x, dim)
        return x

    def where(self, condition: fx.Node, a: fx.Node, b: Any) -> fx.Node:
        """a where the condition holds, else b (a node or a number)."""
        target = aten.where.self if isinstance(b, fx.Node) else aten.where.ScalarOther
        return self.call(target, condition, a, b)
