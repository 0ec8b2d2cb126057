"""Values of many layers side by side, as one: what was done to each alike is done once, to all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from sleepc.backends.onnx.emit import Emitter, is_constant

UNARY = {"Exp", "Log", "Neg", "Relu", "Sigmoid", "Softplus", "Sqrt", "Tanh"}
BINARY = {"Add", "Div", "Mul", "Sub"}


@dataclass
class Abreast:
    """Joins values of a graph whose results are `results`: what else these need is left alone."""

    e: Emitter
    results: Iterable[ir.Value]
    needed: set[ir.Node] = field(default_factory=set)

    def __post_init__(self) -> None:
        left = [value.producer() for value in self.results]
        while left:
            node = left.pop()
            if node is not None and node not in self.needed:
                self.needed.add(node)
                left += [value.producer() for value in node.inputs if value is not None]

    def join(
        self, values: Sequence[ir.Value], axis: int, rank: int, readers: Iterable[ir.Node | None] = ()
    ) -> ir.Value:
        """Values of `rank` dimensions one after another along `axis`; `readers` no longer need them.

        f(a), f(b), ... become f of a, b, ... side by side, and so on down to where they differ or others read them: one
        kernel instead of one per layer. Parameters are joined as well, which a runtime does once, when it loads the
        graph.
        """
        constant, readers = all(map(is_constant, values)), set(readers)
        free = constant or not any(use.node in self.needed - readers for value in values for use in value.uses())
        return (self._once(values, axis, rank) if free else None) or self.e("Concat", *values, axis=axis)

    def _once(self, values: Sequence[ir.Value], axis: int, rank: int) -> ir.Value | None:
        """The function that all values are of, applied once; None if they are not."""
        nodes = [node for value in values if (node := value.producer()) is not None]
        if len(set(nodes)) < len(values) or len({_what(node) for node in nodes}) != 1:
            return None
        node, inner = nodes[0], _source_axis(nodes[0], axis, rank)
        x, *others = ([v for v in column if v is not None] for column in zip(*(n.inputs for n in nodes), strict=True))
        if inner is None or len(others) > 1 or any(v.shape is not None and len(v.shape) != rank for v in x):
            return None
        second = [self._other(node.op_type, column, inner, rank) for column in others]
        if None in second:
            return None
        attributes = {name: a.value for name, a in node.attributes.items()}
        return self.e(node.op_type, self.join(x, inner, rank, nodes), *second, domain=node.domain, **attributes)

    def _other(self, op: str, values: Sequence[ir.Value], axis: int, rank: int) -> ir.Value | None:
        """The second inputs as one: constants with a size along the axis side by side, or the one that all share."""
        shape = values[0].shape
        if shape is None or len(shape) > rank or any(value.shape != shape for value in values):
            return None
        own = axis - rank + len(shape)
        if own >= 0 and shape[own] != 1 and op != "RMSNormalization":
            return self.join(values, own, len(shape)) if all(map(is_constant, values)) else None
        return values[0] if all(value is values[0] for value in values) else None


def _what(node: ir.Node) -> tuple[object, ...]:
    attributes = sorted((name, str(a.value)) for name, a in node.attributes.items())
    return node.domain, node.op_type, len(node.inputs), len(node.outputs), *attributes


def _source_axis(node: ir.Node, axis: int, rank: int) -> int | None:
    """The axis of the node's first input that becomes `axis` of its result; None if results depend on all of it."""
    if node.domain or len(node.outputs) > 1:
        return None
    if node.op_type in UNARY or node.op_type in BINARY:
        return axis
    if node.op_type == "Transpose":
        return int(node.attributes["perm"].as_ints()[axis])
    if node.op_type == "MatMul" and axis < rank - 2:
        return axis
    if node.op_type == "RMSNormalization" and axis < rank + node.attributes["axis"].as_int():
        return axis
    return None
