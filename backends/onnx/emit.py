"""Write ONNX nodes as if they were function calls: `e = Emitter(weights); y = e("Add", a, b)`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from math import prod
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir
import torch

from sleepc.backends.onnx.kernels import MICROSOFT as MICROSOFT
from sleepc.backends.onnx.weights import Form, Keys, Weights
from sleepc.ir.dims import Polynomial, add, format_dim, parse_dim
from sleepc.ir.types import TensorType

SMALL = 1024  # integers that stand in the graph's own file
TYPES: dict[torch.dtype, ir.DataType] = {
    torch.float64: ir.DataType.DOUBLE,
    torch.float32: ir.DataType.FLOAT,
    torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16,
    torch.int64: ir.DataType.INT64,
    torch.int32: ir.DataType.INT32,
    torch.int16: ir.DataType.INT16,
    torch.int8: ir.DataType.INT8,
    torch.uint8: ir.DataType.UINT8,
    torch.bool: ir.DataType.BOOL,
}


Made = TypeVar("Made")


class Emitter:
    """Collects the nodes of one graph (and of graphs inside it: Loop, Scan).

    `sizes` are the graph's named dimensions ("B", "T") as values of shape [1], int64.
    """

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.prefix = ""  # of the names of nodes
        self.loops = 0
        self.initializers: dict[str, ir.Value] = {}
        self.sizes: dict[str, ir.Value] = {}
        self.renamed: dict[str, str] = {}  # names of sizes in the program -> in the graph at hand
        self.numbers: dict[str, int] = {}  # sizes that are always the same in the graph at hand
        self._nodes: list[list[ir.Node]] = [[]]
        self._made: list[dict[Any, Any]] = [{}]
        self._count = 0

    def __call__(self, op: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        """One node with one result."""
        return self.several(op, 1, *inputs, domain=domain, **attributes)[0]

    def several(
        self, op: str, results: int, *inputs: ir.Value | None, domain: str = "", **attributes: Any
    ) -> Sequence[ir.Value]:
        """One node with `results` results; those of before if the same was asked for: all operators are pure."""
        given = list(inputs)
        while given and given[-1] is None:  # optional inputs at the end are left out
            given.pop()
        key = (op, domain, results, tuple(map(id, given)), str(sorted(attributes.items())))
        if op == "Identity" or any(isinstance(value, ir.Graph) for value in attributes.values()):
            return self._node(op, results, given, domain, attributes)
        return self.once(key, lambda: self._node(op, results, given, domain, attributes))

    @contextmanager
    def part(self, prefix: str) -> Iterator[None]:
        """Names of nodes begin with `prefix` in the body."""
        before, self.prefix = self.prefix, prefix
        yield
        self.prefix = before

    def _node(
        self, op: str, results: int, given: list[ir.Value | None], domain: str, attributes: dict[str, Any]
    ) -> Sequence[ir.Value]:
        node = ir.node(op, given, attributes, domain=domain, num_outputs=results)
        self._count += 1
        node.name = f"{self.prefix}{op}.{self._count}"
        for i, value in enumerate(node.outputs):
            value.name = node.name if results == 1 else f"{node.name}.{i}"
        self._nodes[-1].append(node)
        return node.outputs

    def once(self, key: Any, make: Callable[[], Made]) -> Made:
        """The value that `make()` gave for this key in the graph at hand or one around it, or makes now."""
        for made in self._made:
            if key in made:
                found: Made = made[key]
                return found
        value = make()
        self._made[-1][key] = value
        return value

    @property
    def nodes(self) -> list[ir.Node]:
        """What has been written so far in the graph at hand."""
        return self._nodes[-1]

    @contextmanager
    def inside(self) -> Iterator[list[ir.Node]]:
        """Nodes written in this context belong to a graph inside the one at hand; they may read its values."""
        self._nodes.append([])
        self._made.append({})
        try:
            yield self._nodes[-1]
        finally:
            self._nodes.pop()
            self._made.pop()

    @contextmanager
    def outermost(self) -> Iterator[None]:
        """Nodes written in this context belong to the graph around all others: what they compute is there once."""
        before = self._nodes, self._made
        self._nodes, self._made = self._nodes[:1], self._made[:1]
        try:
            yield
        finally:
            self._nodes, self._made = before

    # -- constants and weights ---------------------------------------------------------------------

    def const(self, value: Any, dtype: torch.dtype | np.dtype[Any] | type[np.generic] = np.float32) -> ir.Value:
        """A small constant; equal ones are one initializer."""
        if isinstance(dtype, torch.dtype):
            array = torch.tensor(value, dtype=dtype)
            kind, data = TYPES[dtype], array.float().numpy() if dtype == torch.bfloat16 else array.numpy()
        else:
            data = np.array(value, dtype=dtype)
            kind = ir.DataType.from_numpy(data.dtype)
        name = f"{kind.name.lower()}{list(data.shape)}.{data.tobytes().hex() or 'none'}"
        if len(name) > 80:
            name = f"constant.{sha256(name.encode()).hexdigest()[:16]}"
        if name not in self.initializers:
            tensor = ir.tensor(data, dtype=kind, name=name)
            self.initializers[name] = ir.Value(
                name=name, shape=ir.Shape(data.shape), type=ir.TensorType(kind), const_value=tensor
            )
        return self.initializers[name]

    def ints(self, *values: int) -> ir.Value:
        """A constant vector of int64."""
        return self.const(list(values), np.int64)

    def weight(self, keys: Keys, form: Form = "plain") -> ir.Value:
        """A parameter of the program (or several joined) as an initializer, in a form that a kernel wants."""
        if isinstance(keys, str) and not self.weights.dtypes[keys].is_floating_point:
            value = self.weights.value(keys)
            if value.numel() <= SMALL:  # shape inference reads small integers, and not from another file
                return self.const(value.tolist(), value.dtype)
        name = self.weights.name(keys, form)
        if name not in self.initializers:
            tensor = self.weights.tensor(keys, form)
            self.initializers[name] = ir.Value(
                name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor
            )
        return self.initializers[name]

    # -- sizes ---------------------------------------------------------------------------------------

    def size(self, dim: int | str) -> int | ir.Value:
        """A dimension as a number if it is one, else as a value of shape [1]."""
        dim = self._plain(dim)
        polynomial = parse_dim(str(dim))
        if not polynomial or list(polynomial) == [()]:
            return polynomial.get((), 0)
        return self.once(("size", str(dim)), lambda: self._computed(polynomial))

    def _computed(self, polynomial: Polynomial) -> ir.Value:
        total: ir.Value | None = None
        for names, factor in polynomial.items():
            term = self.ints(factor) if not names or factor != 1 else None
            for name in names:
                term = self.sizes[name] if term is None else self("Mul", term, self.sizes[name])
            assert term is not None
            total = term if total is None else self("Add", total, term)
        assert total is not None
        return total

    def rename(self, name: str, other: str) -> None:
        """From here on, what the program calls `name` is the size `other`."""
        self.sizes[name] = self.sizes[other]
        self.renamed[name] = other
        self.numbers = {known: number for known, number in self.numbers.items() if known != name}
        for made in self._made:
            for key in [key for key in made if key[0] in ("size", "shape")]:
                del made[key]

    @contextmanager
    def knowing(self, numbers: Mapping[str, int]) -> Iterator[None]:
        """In this context the sizes of these names are numbers."""
        before, self.numbers = self.numbers, {**self.numbers, **numbers}
        try:
            yield
        finally:
            self.numbers = before

    def named(self, type_: TensorType) -> TensorType:
        """A type of the program with the sizes that it has in the graph at hand; a runtime relies on them."""
        if not self.renamed and not self.numbers:
            return type_
        return replace(type_, dims=tuple(self._named(self._plain(dim)) for dim in type_.dims))

    def _named(self, dim: int | str) -> int | str:
        if isinstance(dim, int):
            return dim
        return format_dim(
            {tuple(sorted(self.renamed.get(n, n) for n in names)): c for names, c in parse_dim(dim).items()}
        )

    def _plain(self, dim: int | str) -> int | str:
        """A dimension with numbers for the names that are known."""
        if isinstance(dim, int) or not self.numbers:
            return dim
        total: Polynomial = {}
        for names, factor in parse_dim(dim).items():
            left = tuple(name for name in names if name not in self.numbers)
            total = add(total, {left: factor * prod(self.numbers.get(name, 1) for name in names)})
        return format_dim(total)

    def shape(self, dims: Sequence[int | str]) -> ir.Value:
        """Dimensions as a vector, a constant if they are numbers."""
        dims = [self._plain(d) for d in dims]
        sizes = [self.size(d) for d in dims]
        if all(isinstance(s, int) for s in sizes):
            return self.ints(*(s for s in sizes if isinstance(s, int)))
        key = ("shape", tuple(str(d) for d in dims))
        return self.once(
            key, lambda: self("Concat", *(self.ints(s) if isinstance(s, int) else s for s in sizes), axis=0)
        )

    # -- what many operators need --------------------------------------------------------------------

    def cast(self, x: ir.Value, dtype: torch.dtype) -> ir.Value:
        """x in another dtype."""
        return self("Cast", x, to=TYPES[dtype].value)

    def reshape(self, x: ir.Value, before: Sequence[int | str] | None, dims: Sequence[int | str]) -> ir.Value:
        """x [`before`] -> [`dims`]; the target is a constant if ONNX can say it that way."""
        dims = [self._plain(d) for d in dims]
        target = self._target([self._plain(d) for d in before or ()], dims)
        # a target that is not constant has the sizes themselves, of which any may be 0
        zeros: dict[str, Any] = {"allowzero": 1} if target.const_value is None else {}
        return _shaped(self("Reshape", x, target, **zeros), x, [self._named(d) for d in dims])

    def _target(self, before: Sequence[int | str], dims: Sequence[int | str]) -> ir.Value:
        # 0 stands for the same size as before in this place, and one -1 for what is left
        target: list[int | str] = [
            0 if not isinstance(d, int) and i < len(before) and before[i] == d else d for i, d in enumerate(dims)
        ]
        names = [d for d in target if not isinstance(d, int)]
        if len(names) == 1 and 0 not in [d for d in dims if isinstance(d, int)]:
            target = [d if isinstance(d, int) else -1 for d in target]
            names = []
        if names:
            return self.shape(dims)
        return self.ints(*(d for d in target if isinstance(d, int)))

    def transpose(self, x: ir.Value, order: Sequence[int]) -> ir.Value:
        """x with its dimensions in this order; two in a row become one, or none."""
        node = x.producer()
        if node is not None and node.op_type == "Transpose" and node.domain == "":
            inner = list(node.attributes["perm"].as_ints())
            order, source = [inner[i] for i in order], node.inputs[0]
            assert source is not None
            x = source
        if list(order) == list(range(len(order))):
            return x
        dims = [x.shape[i] for i in order] if x.shape is not None else None
        return _shaped(self("Transpose", x, perm=list(order)), x, dims)


def _shaped(value: ir.Value, like: ir.Value, dims: Sequence[Any] | None) -> ir.Value:
    """The value with these dimensions and the type of another, if that is known and it has none."""
    if value.shape is None and dims is not None and like.type is not None:
        value.shape, value.type = ir.Shape(list(dims)), like.type
    return value


def declare(value: ir.Value, type_: TensorType) -> None:
    """Write a type onto a value: exporters must not leave shapes to inference."""
    value.type = ir.TensorType(TYPES[type_.dtype])
    value.shape = ir.Shape(list(type_.dims))


def is_constant(value: ir.Value) -> bool:
    """Is it an initializer, or computed from initializers only?"""
    node = value.producer()
    if node is None:
        return value.const_value is not None
    return all(v is None or is_constant(v) for v in node.inputs)
