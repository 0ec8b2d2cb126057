"""One-token steps in code that PyTorch compiles for this CPU: a function for each class of blocks, whose weights are
arguments, so that they are held once. All other steps are eager's.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sleepc.backends.contract import Kernels
from sleepc.backends.eager.executor import Executor
from sleepc.backends.eager.native import Function, Native, load_native
from sleepc.backends.eager.steps import EagerSteps, State
from sleepc.errors import SleepcError
from sleepc.ir.graph import Graph, is_call
from sleepc.ir.program import ProgramGraphs
from sleepc.ops import functional
from sleepc.progress import Progress

ours = torch.ops.sleepc
Form = tuple[int, bool]  # a block, and whether rows are many
CPU = torch.device("cpu")


class CompiledSteps(EagerSteps):
    """EagerSteps on the CPU that run what reads one token per row in compiled code. There are two forms of it, for one
    row and for any larger number; that for one row is there from the beginning, the other from its first use on. If
    nothing `compiles`, a form that is not in the cache runs as in EagerSteps, which `progress` hears of.

    Raises UsageError if there is no C++ compiler and the code is not in the cache, SleepcError for a class that cannot
    be compiled.
    """

    def __init__(
        self,
        program: ProgramGraphs,
        parameters: Mapping[str, Tensor],
        kernels: Kernels,
        progress: Progress,
        *,
        compiles: bool = True,
    ) -> None:
        super().__init__(program, parameters, kernels)
        self._executors = {
            name: Executor(each.wake, {**kernels, ours.write_slots.default: functional.write_slot_}, CPU)
            for name, each in program.classes.items()
        }
        self._progress, self._compiles = progress, compiles
        self._left: set[bool] = set()  # forms (rows are many?) that are not compiled
        self._functions: dict[str, Native] = {}  # by what their code depends on
        self._forms: dict[Form, Native] = {}
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            state = self.new_state(1)
            values, _ = self.begin(state, torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, dtype=torch.int64))
            self._prepare(values, state)

    def bind(self, parameters: Mapping[str, Tensor]) -> None:
        """Use these parameters from now on. Code is for numbers that lie in order: others are copied."""
        super().bind({key: value.contiguous() for key, value in parameters.items()})

    def wake_block(self, i: int, values: Mapping[str, Any], state: State) -> tuple[Tensor, State]:
        """See `EagerSteps.wake_block`."""
        rows, tokens = values["h"].shape[:2]
        if tokens == 1 and (i, rows > 1) not in self._forms and rows > 1 not in self._left:
            self._prepare(values, state)
        if tokens != 1 or (i, rows > 1) not in self._forms:
            return super().wake_block(i, values, state)
        results = self._forms[i, rows > 1](self._inputs(i, values, state))
        h: Tensor = results.pop("h")
        names = self._blocks[i][2]
        return h, {names[local]: value for local, value in results.items()}

    def _inputs(self, i: int, values: Mapping[str, Any], state: State) -> dict[str, Any]:
        _, parameters, names = self._blocks[i]
        return {**values, **parameters, **{local: state[full] for local, full in names.items()}}

    def _prepare(self, values: Mapping[str, Any], state: State) -> None:
        """Make the functions of all blocks for as many rows as there are, from the cache if they are in it."""
        started, many = time.perf_counter(), len(values["h"]) > 1
        try:
            found = [self._function(i, self._inputs(i, values, state)) for i in range(len(self._blocks))]
        except SleepcError as error:
            if self._compiles:
                raise
            what, _, fix = error.on_command_line
            self._left.add(many)
            self._progress(f"compiled code for {_rows(many)} is left out: {what}. {fix}", None)
            return
        self._forms |= {(i, many): native for i, native in enumerate(found)}
        made, new = len(set(found)), sum(native.new for native in set(found))
        what = f"{made} function{'' if made == 1 else 's'} for {_rows(many)}"
        seconds = time.perf_counter() - started
        self._progress(f"compiled code: {what}, {new} compiled, {made - new} from the cache, {seconds:.1f} s", None)

    def _function(self, i: int, inputs: Mapping[str, Any]) -> Native:
        name = self._blocks[i][0]
        graph = self.program.classes[name].wake
        rows = symbolic_rows(graph) if len(inputs["h"]) > 1 else {}
        function = Function(self._executors[name], inputs, rows, in_place(graph))
        key = f"{name} {function.shapes()}"
        if key not in self._functions:
            self._functions[key] = load_native(function, name, compiles=self._compiles)
        return self._functions[key]


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


def symbolic_rows(graph: Graph) -> dict[str, list[int]]:
    """The dimensions of a graph's ports that are its rows."""
    types = {name: node.meta["type"] for name, node in graph.ports().items()}
    return {
        name: [at for at, dim in enumerate(getattr(type_, "dims", ())) if dim == "B"] for name, type_ in types.items()
    }
