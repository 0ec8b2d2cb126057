"""Types of all nodes, from the ports' types: the operators' fake kernels over symbolic sizes."""

from __future__ import annotations

import logging
import operator
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sympy  # type: ignore[import-untyped]  # it comes with torch, without types
import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

from sleepc.errors import SleepcError
from sleepc.ir import dims
from sleepc.ir.diagnose import fault
from sleepc.ir.graph import Graph
from sleepc.ir.levels import SIZE_OPERATORS, mutates
from sleepc.ir.types import DTYPE_NAMES, IntType, TensorType, TupleType, Type

# Example sizes are pairwise different: a comparison of two of them cannot be true by accident.
HINTS = {"B": 3, "T": 5}
MORE_HINTS = (7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67)
MAX_SIZE_OPERATIONS = 256


# Sizes by their names and examples, with what is known of operators over them; the latest last.
_SIZES: OrderedDict[object, _Symbols] = OrderedDict()
KEPT, MOST_KNOWN = 8, 20_000


def infer_types(graph: Graph) -> None:
    """Set meta["type"] of every node but the output, from the types of the ports.

    Nothing is computed and no memory taken, whatever sizes the graph names. Raises InvalidProgram:
    V10 a port without type, V11 an operator that refuses its arguments or gives what no type
    describes, V13 a size that is not one, V14 a graph that is right for particular sizes only.
    """
    hints = _hints_of(graph)
    key = torch.get_default_dtype(), *hints.items()
    sizes = _SIZES.pop(key, None) or _Symbols(hints)  # where an error is raised, they are not put back
    values: dict[fx.Node, _Typed] = {}
    # The Python dispatcher has decompositions that keep sizes symbolic where those in C++ ask for numbers (torch 2.11).
    with sizes.mode, enable_python_dispatcher(), torch.no_grad(), _quiet():
        for node in graph.fx.nodes:
            if node.op == "output":
                continue
            try:
                values[node] = sizes.result(node, values)
            except SleepcError as error:
                raise fault("V11", error.what, graph, node) from error
            except Exception as error:  # torch raises any class for arguments that do not fit
                raise fault("V11", f"the operator refuses its arguments: {_first_line(error)}", graph, node) from error
            node.meta["type"] = values[node].type
            _check_general(graph, node, sizes.environment, sizes.names)
    # What one graph compares sizes with changes no answer for the next.
    if not sizes.environment.guards and len(sizes.known) < MOST_KNOWN:
        _SIZES[key] = sizes
        if len(_SIZES) > KEPT:
            _SIZES.popitem(last=False)


@contextmanager
def symbolic(types: Sequence[TensorType]) -> Iterator[list[torch.Tensor]]:
    """Fake tensors of these types, whose sizes with a name are symbols, to trace functions on.

    Raises SleepcError if what is traced holds for particular sizes only.
    """
    names = sorted({name for type_ in types for dim in type_.dims for name in dims.names_of(dim)})
    sizes = _Symbols({**HINTS, **dict(zip([n for n in names if n not in HINTS], MORE_HINTS, strict=False))})
    with sizes.mode, enable_python_dispatcher(), _quiet():
        yield [_example(type_, sizes.symbols) for type_ in types]
    if found := _narrowed(sizes.environment, sizes.names):
        raise SleepcError(f"right only for particular sizes ({found})")


@dataclass(eq=False)
class _Typed:
    """A fake value and its type, one for all that are alike."""

    value: Any
    type: Type


class _Symbols:
    """Symbols for the names of sizes, and what operators gave for arguments over them.

    A graph differs from the one before a pass in a few nodes, and most blocks of a model are alike. What follows from
    a fake value is in its dtype, shape, strides and offset: arguments that agree in these give the same.
    """

    def __init__(self, hints: Mapping[str, int]) -> None:
        self.environment = ShapeEnv()
        self.symbols = {name: _make_symbol(self.environment, name, hint) for name, hint in hints.items()}
        self.names: dict[sympy.Expr, str] = {size.node.expr: name for name, size in self.symbols.items()}
        self.mode = FakeTensorMode(shape_env=self.environment)
        self.mode.cache_enabled = False  # for symbolic sizes it takes longer than most operators
        self.known: dict[object, _Typed] = {}
        self.alike: dict[object, _Typed] = {}

    def result(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> _Typed:
        """The node's value; computed if its operator has not been called with such arguments."""
        if node.op == "placeholder":
            key: object = str(node.meta["type"])
        else:
            args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
            _check_arguments(node, args)
            key = node.target, _frozen(args), _frozen(list(kwargs.items()))
        if key not in self.known:
            value = _value(node, values, self.symbols)
            known = _Typed(value, _type_of(node, value, self.names))
            self.known[key] = self.alike.setdefault(_properties(value), known)
        return self.known[key]


def _frozen(argument: Any) -> object:
    """An argument for a key; 1, 1.0 and True are three."""
    if isinstance(argument, (list, tuple)):
        return tuple(map(_frozen, argument))
    return argument if isinstance(argument, _Typed) else (type(argument), argument)


def _properties(value: Any) -> object:
    """All that an operator can tell of a fake value."""
    if isinstance(value, (list, tuple)):
        return tuple(map(_properties, value))
    if not isinstance(value, torch.Tensor):
        return "size", _expression(value)
    sizes = (*value.shape, *value.stride(), value.storage_offset())
    return value.dtype, *map(_expression, sizes)


def _expression(size: int | torch.SymInt) -> int | sympy.Expr:
    return size if isinstance(size, int) else size.node.expr


def _hints_of(graph: Graph) -> dict[str, int]:
    """The names of sizes in the ports' types, with an example of each."""
    names: dict[str, None] = {}
    for node in graph.ports().values():
        if not isinstance(node.meta.get("type"), TensorType):
            raise fault("V10", "a port has no tensor type", graph, node)
        for dim in node.meta["type"].dims:
            try:
                names.update(dict.fromkeys(sorted(dims.names_of(dim))))
            except SleepcError as error:
                raise fault("V13", error.what, graph, node) from error
    others = [name for name in names if name not in HINTS]
    if len(others) > len(MORE_HINTS):
        raise fault("V13", f"{len(names)} names of sizes are too many", graph)
    hints = {**HINTS, **dict(zip(others, MORE_HINTS, strict=False))}
    return {name: hints[name] for name in names}


def _make_symbol(environment: ShapeEnv, name: str, hint: int) -> torch.SymInt:
    from torch._dynamo.source import ConstantSource  # it takes a second, and what loads no program needs none

    source = ConstantSource(name)
    symbol = environment.create_symbol(hint, source=source, dynamic_dim=DimDynamic.DYNAMIC, constraint_dim=None)
    made = environment.create_symintnode(symbol, hint=hint, source=source)
    assert isinstance(made, torch.SymInt)
    return made


def _check_arguments(node: fx.Node, args: Sequence[Any]) -> None:
    if mutates(node.target):
        raise SleepcError("the operator writes to its arguments")
    if node.target in SIZE_OPERATORS.values() and not all(_is_size(getattr(a, "value", a)) for a in args):
        raise SleepcError("arithmetic of sizes takes only sizes")
    if node.target is operator.getitem:
        several = isinstance(args[0], _Typed) and isinstance(args[0].type, TupleType)
        if not several or type(args[1]) is not int:
            raise SleepcError("getitem takes the value of an operator with several results, and a number")


def _value(node: fx.Node, values: Mapping[fx.Node, _Typed], symbols: Mapping[str, torch.SymInt]) -> Any:
    """The node's value over fake tensors and symbolic sizes."""
    if node.op == "placeholder":
        return _example(node.meta["type"], symbols)
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: values[n].value)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def _example(type_: TensorType, symbols: Mapping[str, torch.SymInt]) -> torch.Tensor:
    shape = [dims.evaluate(dims.parse_dim(str(d)), symbols) for d in type_.dims]
    return torch.empty(shape, dtype=type_.dtype, device="cpu")


def _is_size(value: Any) -> bool:
    return isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)


def _type_of(node: fx.Node, value: Any, names: Mapping[sympy.Expr, str]) -> Type:
    if isinstance(value, torch.Tensor):
        return _tensor_type(value, names)
    if isinstance(value, (tuple, list)) and all(isinstance(v, torch.Tensor) for v in value):
        return TupleType(tuple(_tensor_type(v, names) for v in value))
    if _is_size(value):
        _check_size(value)
        return IntType()
    raise SleepcError(f"no type describes a result of {type(value).__name__}")


def _tensor_type(value: torch.Tensor, names: Mapping[sympy.Expr, str]) -> TensorType:
    if value.dtype not in DTYPE_NAMES:
        raise SleepcError(f"no type describes {value.dtype}")
    return TensorType(value.dtype, tuple(_dim_of(size, names) for size in value.shape))


def _dim_of(size: int | torch.SymInt, names: Mapping[sympy.Expr, str]) -> dims.Dim:
    if isinstance(size, int):
        return size
    return dims.format_dim(_polynomial(size.node.expr, names))


def _polynomial(expression: sympy.Expr, names: Mapping[sympy.Expr, str]) -> dims.Polynomial:
    if expression in names:
        return {(names[expression],): 1}
    if isinstance(expression, sympy.Integer):
        return dims.constant(int(expression))
    if (
        isinstance(expression, sympy.Pow)
        and isinstance(expression.exp, sympy.Integer)
        and 0 < expression.exp <= dims.MAX_DEGREE
    ):
        return _polynomial(sympy.Mul(*[expression.base] * int(expression.exp), evaluate=False), names)
    if not isinstance(expression, (sympy.Add, sympy.Mul)):
        raise SleepcError(f"the size {expression} is not made of +, * and names")
    combine = dims.add if isinstance(expression, sympy.Add) else dims.multiply
    result, *rest = (_polynomial(part, names) for part in expression.args)
    for part in rest:
        result = combine(result, part)
    return result


def _check_size(value: int | torch.SymInt) -> None:
    """Keep what a hostile graph computes on sizes small."""
    # The example value grows with any power of a size, which the expression's length does not show.
    example = value if isinstance(value, int) else value.node.hint
    too_large = abs(example) >= dims.MAX_INT or (
        not isinstance(value, int) and value.node.expr.count_ops() > MAX_SIZE_OPERATIONS
    )
    if too_large:
        raise SleepcError("a size is too large")


def _check_general(graph: Graph, node: fx.Node, environment: ShapeEnv, names: Mapping[sympy.Expr, str]) -> None:
    """A node must not hold for one value of a symbolic size only."""
    if text := _narrowed(environment, names):
        raise fault("V14", f"right only for particular sizes ({text})", graph, node)


def _narrowed(environment: ShapeEnv, names: Mapping[sympy.Expr, str]) -> str:
    """Which sizes have been tied to one value, "" if none."""
    narrowed = [f"{symbol} = {to}" for symbol, to in environment.replacements.items()]
    if not narrowed:
        narrowed = [str(g.expr) for g in environment.guards if g.expr.has(sympy.Eq)]
    text = ", ".join(dict.fromkeys(narrowed))
    for symbol, name in names.items():
        text = text.replace(str(symbol), name)
    return text


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch logs what it is about to raise; the error says it already."""
    loggers = [
        logging.getLogger(f"torch.{name}") for name in ("fx.experimental.symbolic_shapes", "_subclasses.fake_tensor")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
