"""What a program's memories ask of a GPU: each operator of its graphs as kernels that are started one after another.

Found by calling the backend's own functions on tensors without values (`launch.recorded`), so that what is compiled
ahead of time is what runs. Rows B and tokens T are then sizes that nothing else has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.fx import Node

from sleepc.backends.triton import delta_rule as operators
from sleepc.backends.triton.choices import LONGEST, WIDEST, chunk_of, types
from sleepc.backends.triton.launch import NAMES, Started, recorded
from sleepc.errors import SleepcError, UsageError
from sleepc.ir.program import ProgramGraphs

ROWS, CHUNKS = 100003, 5003
LIST = "state"  # the argument that is a list, of one tensor for every rule that has kernels
RESULTS = {"delta_rule": ("out", "end"), "delta_rule_read": ("out",), "replay": ("end",)}
"""What kernels call the results of an operator."""
Dims = tuple[int | str, ...]
Size = TypeVar("Size", int, int | str)


@dataclass(frozen=True)
class Value:
    """A tensor by its type, of Triton's names, and its dimensions: numbers, B, T, or the chunks of T tokens."""

    dtype: str
    dims: Dims


@dataclass(frozen=True)
class Use:
    """A kernel started once: on B `per_row` programs, times the chunks of T tokens if `per_chunk`; its arguments by
    name, which are numbers, T, or names of tensors.
    """

    started: Started
    per_row: int
    per_chunk: bool
    arguments: Mapping[str, str | int | float]


@dataclass
class Operation:
    """An operator for calls of one token, of T, or of a fixed number of them, and the blocks that call it."""

    operator: str
    options: Mapping[str, str | int | float | bool]
    tokens: str
    chunk: int
    inputs: Mapping[str, Value]
    buffers: Mapping[str, Value]
    results: Sequence[str]
    uses: Sequence[Use]
    blocks: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class MemoryCall:
    """An operator in a graph: the types of its tensors and its options."""

    operator: str
    tensors: tuple[tuple[str, torch.dtype, Dims], ...]
    options: tuple[tuple[str, Any], ...]


def operations(program: ProgramGraphs) -> list[Operation]:
    """Every different operator of the program's memories. Raises UsageError if there is none, or one has no kernel."""
    calls: dict[MemoryCall, list[int]] = {}
    for name, cls in program.classes.items():
        blocks = [i for i, block in enumerate(program.layout) if block.cls == name]
        for call in dict.fromkeys(call for graph in cls.graphs() for call in map(_call_of, graph.calls()) if call):
            calls.setdefault(call, []).extend(blocks)
    if not calls:
        raise UsageError("the artifact has no memory, and so no kernels", where="--to triton")
    found = []
    for call, blocks in calls.items():
        for tokens in ("1", "T") if any("T" in dims for *_, dims in call.tensors) else ("",):
            made = _traced(call, tokens, program)
            made.blocks = sorted(set(blocks))
            found.append(made)
    return found


def _call_of(node: Node) -> MemoryCall | None:
    """None for what is no operator of a memory."""
    name = next((each for each in RESULTS if node.target is getattr(torch.ops.sleepc, each).default), None)
    if name is None:
        return None
    schema: Any = node.target
    given = dict(zip([each.name for each in schema._schema.arguments], node.args, strict=False)) | dict(node.kwargs)
    tensors, options = [], []
    for key, value in given.items():
        one = value[0] if key == LIST else value
        if isinstance(one, Node):
            kind = one.meta["type"]
            tensors.append((key, kind.dtype, kind.dims))
        elif key not in ("chunk", "gates"):
            options.append((key, value))
    call = MemoryCall(name, tuple(tensors), tuple(options))
    _require_kernel(call, len(given[LIST]))
    return call


def _require_kernel(call: MemoryCall, states: int) -> None:
    options, kinds = dict(call.options), {name: (dtype, dims) for name, dtype, dims in call.tensors}
    dtype, (wide, held) = kinds.get("k", kinds.get("q", kinds[LIST]))[0], kinds[LIST]
    named = {size for *_, dims in call.tensors for size in dims if isinstance(size, str)}
    if states == 1 and named <= {"B", "T"}:
        x, state = (_empty(kind, dims, {"B": 1}) for kind, dims in ((dtype, ("B",)), (wide, held)))
        if operators.has_kernel(x, [state], options["rule"]):
            return
    what = f"rule {options['rule']} in {dtype}, with a memory of {' by '.join(map(str, held[2:]))} in {wide}"
    raise UsageError(
        f"{what.replace('torch.', '')}, has no kernel",
        where=f"--to triton, {call.operator}",
        fix=f"Rules with kernels: {', '.join(operators.FAMILY)}; float32, bfloat16, float16; heads up to {WIDEST}.",
    )


def _traced(call: MemoryCall, tokens: str, program: ProgramGraphs) -> Operation:
    """The kernels of a call, for a number of tokens (one, T, or what its types say)."""
    options = dict(call.options)
    fixed = {name: dims[2] for name, _, dims in call.tensors if name != LIST}
    count = next(iter(fixed.values()))
    reads = call.operator == "delta_rule_read"  # in chunks as long as they may be
    longest = {"1": 1, "T": LONGEST if reads else program.window}
    chunk = chunk_of(count if isinstance(count, int) else longest[tokens], LONGEST)
    known = {"B": ROWS, "T": 1 if tokens == "1" else chunk * CHUNKS - 5}
    given = {name: _empty(dtype, dims, known) for name, dtype, dims in call.tensors}
    # a host hands them on in the type that they are multiplied in
    given |= {name: operators.narrowed(given[name], program.dtype) for name in ("q", "k", "v") if name in given}
    arguments: list[Any] = [[x] if name == LIST else x for name, x in given.items()]
    hint = {} if reads else {"chunk": chunk}
    with torch.no_grad(), recorded() as record:
        made = getattr(operators, call.operator)(*arguments, **options, **hint)
    sizes = {ROWS: "B", chunk * CHUNKS - 5: "T", CHUNKS: "chunks"}
    names = _Names(given, sizes)
    uses = [names.use(each) for each in record]
    results = [made] if isinstance(made, Tensor) else made
    said = [names.of[id(x)] for x in results]
    if len({each.problem.chunk for each in record}) != 1:
        raise SleepcError(f"the kernels of {call.operator} have chunks of several sizes")
    buffers = {name: x for name, x in names.values.items() if name not in given}
    return Operation(
        call.operator,
        options,
        tokens or str(count),
        record[0].problem.chunk,
        {name: _value(x, sizes) for name, x in given.items()},
        {name: _value(x, sizes) for name, x in buffers.items()},
        said,
        uses,
    )


def _empty(dtype: torch.dtype, dims: Dims, known: Mapping[str, int]) -> Tensor:
    return torch.empty([known[d] if isinstance(d, str) else d for d in dims], dtype=dtype, device="meta")


class _Names:
    """Names of tensors, in the order in which kernels see them: the operator's own, then what kernels call them."""

    def __init__(self, given: Mapping[str, Tensor], sizes: Mapping[int, str]) -> None:
        self.values = dict(given)
        self.of = {id(x): name for name, x in given.items()}
        self.sizes = sizes

    def use(self, it: Started) -> Use:
        """A start in words. Raises SleepcError for an argument of another type than the kernel is compiled for."""
        kinds = types(it.kernel.arg_names, it.problem)
        pairs = dict(zip(it.kernel.arg_names, it.arguments, strict=False))
        for name, x in pairs.items():
            if isinstance(x, Tensor) and kinds[name] != f"*{NAMES.get(x.dtype)}":
                raise SleepcError(f"{it.kernel.fn.__name__} takes {name} as {kinds[name]}, and is given {x.dtype}")
        chunked = it.programs % (ROWS * CHUNKS) == 0
        per_row = it.programs // (ROWS * CHUNKS if chunked else ROWS)
        return Use(it, _known(per_row), chunked, {name: self._said(name, x) for name, x in pairs.items()})

    def _said(self, name: str, x: Tensor | int | float) -> str | int | float:
        if isinstance(x, float):
            return x
        if not isinstance(x, Tensor):
            return _known(self.sizes.get(x, x))
        if id(x) not in self.of:
            again = sum(known.rstrip("_123456789") == name for known in self.values)
            self.of[id(x)] = f"{name}_{again + 1}" if again else name
            self.values[self.of[id(x)]] = x
        return self.of[id(x)]


def _value(x: Tensor, sizes: Mapping[int, str]) -> Value:
    return Value(NAMES[x.dtype], tuple(_known(sizes.get(size, size)) for size in x.shape))


def _known(size: Size) -> Size:
    """A number that no B, T or chunks went into; else SleepcError."""
    if isinstance(size, int) and size >= CHUNKS:
        raise SleepcError(f"a kernel's size {size} depends on the rows or tokens in a way that no manifest can say")
    return size
