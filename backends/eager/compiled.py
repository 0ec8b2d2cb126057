"""One-token steps in code that PyTorch compiles for this CPU: a function for the embedding, each class of blocks and
the head, whose weights are arguments, so that they are held once. All other steps are eager's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from sleepc.backends.contract import Kernels
from sleepc.backends.eager.executor import Executor
from sleepc.backends.eager.native import Function, Native, load_native
from sleepc.backends.eager.steps import LINEAR, EagerSteps, State
from sleepc.errors import SleepcError
from sleepc.ir.graph import Graph, is_call
from sleepc.ir.program import ProgramGraphs
from sleepc.ops import functional
from sleepc.progress import Progress

ours = torch.ops.sleepc
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Code:
    """Where the code of functions is from: what gives that of one, by its name; what people call the place; and does
    a function without code end all (`needed`), or run as in EagerSteps?
    """

    load: Callable[[Function, str], Native] = load_native
    place: str = "the cache"
    needed: bool = True


def cached() -> Code:
    """What is in the cache, and nothing that would have to be compiled."""
    return Code(partial(load_native, compiles=False), needed=False)


class Part(Executor):
    """A graph of a step: for one token in compiled code, where that is there, and operator by operator else. `sizes`
    are names of sizes that blocks which share it have of their own: code is for all of two and more.
    """

    def __init__(self, graph: Graph, kernels: Kernels, *, folds: bool = False, sizes: Collection[str] = ()) -> None:
        super().__init__(graph, kernels, CPU, folds=folds)
        self.sizes = frozenset(sizes)
        self._own = [(name, at) for name, dims in named_dims(graph, self.sizes).items() for at in dims]
        self.forms: dict[bool, Native] = {}  # by whether rows are many
        single: dict[Any, Any] = {ours.write_slots.default: functional.write_slot_, LINEAR: one_row_linear}
        self.single = Executor(graph, {**kernels, **single}, CPU)
        self.read = "h" if "h" in self.ports else "tokens"

    def function(self, inputs: Mapping[str, Any]) -> Function:
        """It as a function of one token of as many rows as in `inputs`."""
        rows = {"B"} if len(inputs[self.read]) > 1 else set()
        return Function(self.single, inputs, named_dims(self.graph, self.sizes | rows), in_place(self.graph))

    def fits(self, values: Mapping[str, Any]) -> bool:
        """Are all sizes of a block's own two or more?"""
        return all(values[name].shape[at] > 1 for name, at in self._own)

    def __call__(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """See `Executor`."""
        rows, tokens = values[self.read].shape[:2]
        native = self.forms.get(rows > 1) if tokens == 1 else None
        return native(values) if native is not None and self.fits(values) else super().__call__(values)


class CompiledSteps(EagerSteps):
    """EagerSteps on the CPU that run what reads one token per row in compiled code. There are two forms of it, for one
    row and for any larger number; that for one row is there from the beginning, the other from its first use on. What
    `progress` hears of is how many functions there were, or that a form is left out.

    Raises UsageError if there is no C++ compiler and the code, if it is needed, is not in the cache; SleepcError for a
    class that cannot be compiled.
    """

    def __init__(
        self,
        program: ProgramGraphs,
        parameters: Mapping[str, Tensor],
        kernels: Kernels,
        progress: Progress,
        *,
        code: Code | None = None,
    ) -> None:
        super().__init__(program, parameters, kernels)
        self._progress, self._code = progress, code or Code()
        self._asked: set[bool] = set()  # forms (rows are many?) that are there, or left out
        blocks = {
            name: Part(each.wake, kernels, folds=True, sizes=own_sizes(program, name))
            for name, each in program.classes.items()
        }
        self._wake = {**blocks}
        self._embed, self._head = embed, head = Part(program.embed, kernels), Part(program.head, kernels)
        self._parts = {"embed": embed, **blocks, "head": head}
        self.prepare()

    def bind(self, parameters: Mapping[str, Tensor]) -> None:
        """Use these parameters from now on. Code is for numbers that lie in order: others are copied."""
        super().bind({key: value.contiguous() for key, value in parameters.items()})

    def begin(self, state: State, tokens: Tensor, lengths: Tensor) -> tuple[dict[str, Any], State]:
        """See `EagerSteps.begin`."""
        if tokens.shape[1] == 1:
            self.prepare(many=len(tokens) > 1)
        return super().begin(state, tokens, lengths)

    def prepare(self, *, many: bool = False) -> None:
        """Make the functions for one row or for many, if they were not asked for before."""
        if many in self._asked:
            return
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            self._prepare(many)
        self._asked.add(many)

    def _prepare(self, many: bool) -> None:
        started = time.perf_counter()
        try:
            found = {name: self._code.load(self._parts[name].function(x), name) for name, x in self._inputs(many)}
        except SleepcError as error:
            if self._code.needed:
                raise
            what, _, fix = error.on_command_line
            self._progress(f"compiled code for {_rows(many)} is left out: {what}. {fix}", None)
            return
        for name, native in found.items():
            self._parts[name].forms[many] = native
        made, new = len(found), sum(native.new for native in found.values())
        what = f"{made} function{'' if made == 1 else 's'} for {_rows(many)}"
        old, seconds = f"{made - new} from {self._code.place}", time.perf_counter() - started
        self._progress(f"compiled code: {what}, {new} compiled, {old}, {seconds:.1f} s", None)

    def _inputs(self, many: bool) -> list[tuple[str, dict[str, Any]]]:
        """What each part reads at the first token of one row, or of two."""
        rows = 2 if many else 1
        state, tokens = self.new_state(rows), torch.zeros(rows, 1, dtype=torch.int64)
        lengths = torch.ones(rows, dtype=torch.int64)
        values, _ = super().begin(state, tokens, lengths)
        found: dict[str, dict[str, Any]] = {}
        for i, (name, _, _) in enumerate(self._blocks):
            if name not in found and self._parts[name].fits(given := self._given(i, values, state)):
                found[name] = given
        around = {**self.parameters, **state, **values, "tokens": tokens, "lengths": lengths}
        return [(name, found.get(name, around)) for name in self._parts if name in found or name in ("embed", "head")]


def one_row_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [.., in], weight [out, in], bias [out] -> [.., out]. For one row it is multiplied and added up, which inductor
    makes one loop over the weights: as fast as memory gives them, where a library's product of one row may be half as
    fast (docs/performance.md).
    """
    if any(size != 1 for size in x.shape[:-1]):
        return linear(x, weight, bias)
    row = x.as_strided((1, x.shape[-1]), (0, x.stride(-1)))  # which lies in memory: what it is made of is computed once
    y = (weight * row).sum(-1)
    return (y if bias is None else y + bias).reshape(*x.shape[:-1], -1)


def _rows(many: bool) -> str:
    return "many rows" if many else "one row"


def in_place(graph: Graph) -> list[str]:
    """The states that a graph writes into: they are no results of its code, whose arguments they are."""
    ports = graph.ports("state")
    return [
        name
        for name, node in graph.results().items()
        if is_call(node, ours.write_slots.default) and node.args[0] is ports.get(name)
    ]


def named_dims(graph: Graph, names: Collection[str]) -> dict[str, dict[int, str]]:
    """The dimensions of a graph's ports that have one of these names."""
    types = {name: node.meta["type"] for name, node in graph.ports().items()}
    return {
        name: {at: dim for at, dim in enumerate(getattr(type_, "dims", ())) if dim in names}
        for name, type_ in types.items()
    }


def own_sizes(program: ProgramGraphs, name: str) -> set[str]:
    """The names of sizes that not all blocks of a class have alike."""
    known: dict[str, set[int]] = {}
    for i in (i for i, block in enumerate(program.layout) if block.cls == name):
        for dim, size in program.sizes(i).items():
            known.setdefault(dim, set()).add(size)
    return {dim for dim, sizes in known.items() if len(sizes) > 1}
