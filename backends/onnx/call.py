"""One operator call of a program while it is translated, and the tables of what translates what."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import onnx_ir as ir
import torch
from torch import fx

import sleepc.ops.library  # noqa: F401 (makes the operators that are translated)
from sleepc.backends.onnx.emit import Emitter
from sleepc.backends.onnx.weights import Weight
from sleepc.errors import UsageError
from sleepc.ir.levels import aten as aten
from sleepc.ir.types import TensorType

Precision = Literal["fp32", "fp16", "int8", "int4", "source"]
Operators = Literal["ort", "portable"]
Tokens = Literal["any", "one", "many"]
ours = torch.ops.sleepc


@dataclass(frozen=True)
class Style:
    """How operators are spelled: `ort` has ONNX Runtime's fused kernels (opset 23 and com.microsoft), `portable` plain
    operators of opset 18. `precision` is that of linear maps and embeddings; everything else is float32.
    """

    ops: Operators = "ort"
    precision: Precision = "fp32"
    columns: bool = True  # what is written into windows is an output, which the host writes in place
    tokens: Tokens = "any"  # how many a call has, in a part of the graph that is for one or for many
    plain_sleeps: bool = False  # sleeps in plain operators, whatever `ops` is
    one_token: bool = False  # a graph of its own for calls of one token
    packed: bool = False  # calls of one token read weights in 4 bits where a quantised source has them so

    @property
    def reads_packed(self) -> bool:
        """Does this part of the graph?"""
        return self.packed and self.tokens == "one"


@dataclass
class Call:
    """A call with its translated arguments."""

    e: Emitter
    node: fx.Node
    values: Mapping[fx.Node, Any]
    style: Style
    passes: ir.Value | None = None  # how often a sleep replays its window, if that is an input

    @property
    def out(self) -> TensorType:
        """The type of the result, of an operator with one."""
        type_ = self.node.meta["type"]
        assert isinstance(type_, TensorType)
        return type_

    def raw(self, at: int | str, default: Any = None) -> Any:
        """An argument by place or name, nodes replaced by what they were translated to."""
        args: Any = self.node.kwargs if isinstance(at, str) else self.node.args
        if (at not in args) if isinstance(at, str) else (at >= len(args)):
            return default
        return fx.map_arg(args[at], self._translated)

    def _translated(self, node: fx.Node) -> Any:
        value = self.values[node]
        if value is None:
            raise UsageError(
                f"the ONNX backend cannot say what size {node} is",
                where=str(self.node.meta.get("source", "")),
                fix="Run this program with the eager backend.",
            )
        return value

    def option(self, at: int, name: str, default: Any = None) -> Any:
        """An argument that may be given by place or by name."""
        return self.raw(name, self.raw(at, default))

    def type(self, at: int) -> TensorType:
        """The type of a tensor argument."""
        type_ = self.node_at(at).meta["type"]
        assert isinstance(type_, TensorType)
        return type_

    def node_at(self, at: int) -> fx.Node:
        """An argument as it is in the program."""
        node = self.node.args[at]
        assert isinstance(node, fx.Node)
        return node

    def nodes_at(self, at: int) -> list[fx.Node]:
        """An argument that is a list, as it is in the program."""
        nodes = self.node.args[at]
        assert isinstance(nodes, (list, tuple))
        return [node for node in nodes if isinstance(node, fx.Node)]

    def tensor(self, at: int, dtype: torch.dtype | None = None) -> ir.Value:
        """An argument as a value, numbers and sizes too; cast if it has another dtype."""
        value = self.raw(at)
        if isinstance(value, Weight):
            value = self.e.weight(value.key)
        if isinstance(value, str):  # a size
            size = self.e("Squeeze", self.e.shape([value]), self.e.ints(0))
            return self.e.cast(size, dtype or self.out.dtype)
        if not isinstance(value, ir.Value):
            return self.e.const(value, dtype or self.out.dtype)
        argument = self.node.args[at]
        type_ = argument.meta["type"] if isinstance(argument, fx.Node) else None
        if dtype is None or not isinstance(type_, TensorType) or type_.dtype == dtype:
            return value
        return self.e.cast(value, dtype)

    def value(self, node: fx.Node) -> ir.Value:
        """What any node of the program was translated to."""
        value = self.values[node]
        if isinstance(value, Weight):
            return self.e.weight(value.key)
        assert isinstance(value, ir.Value), node
        return value

    def dim(self, at: int, rank: int) -> int:
        """An argument that names a dimension, counted from the front."""
        return int(self.raw(at)) % rank


Translation = Callable[[Call], "ir.Value | Sequence[ir.Value]"]
Fusion = Callable[[Call], "ir.Value | None"]
TRANSLATIONS: dict[Any, Translation] = {}
"""Operator of the program -> how to write it with plain operators of opset 18."""
FUSED: dict[Any, Fusion] = {}
"""Last operator of a pattern -> how to write the whole pattern with a kernel of ONNX Runtime's, or None if it is
something else. What the pattern's other calls were translated to is left without readers, and dropped."""


T = TypeVar("T", bound=Translation)
F = TypeVar("F", bound=Fusion)


def translates(*targets: Any) -> Callable[[T], T]:
    """Enter a function into TRANSLATIONS. Raises ValueError if there is one already."""
    return _into(TRANSLATIONS, targets)


def fuses(*targets: Any) -> Callable[[F], F]:
    """Enter a function into FUSED. Raises ValueError if there is one already."""
    return _into(FUSED, targets)


def _into(table: dict[Any, Any], targets: Sequence[Any]) -> Callable[[Any], Any]:
    """Files are read in the order of their names, which must not decide what an operator becomes."""

    def enter(function: Any) -> Any:
        twice = [str(target) for target in targets if target in table]
        if twice:
            raise ValueError(f"{', '.join(twice)} is translated twice")
        table.update(dict.fromkeys(targets, function))
        return function

    return enter
