"""What functions are made of: a program whose parameters have no values, and what runs its parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Node
from torch.fx.traceback import annotate

from sleepc.backends.table import find_trainer
from sleepc.backends.training_steps import TrainingSteps
from sleepc.ir.graph import PARAMETERS, Graph
from sleepc.ir.parameters import dtypes_of
from sleepc.ir.program import ProgramGraphs

Tensors = dict[str, Tensor]
BLOCK = "block"  # of what is noted of a node while it is traced


@dataclass(frozen=True)
class EntryPoint:
    """A function of named tensors: examples without values of its `parameters` and, after them, its `inputs`."""

    name: str
    parameters: Tensors
    inputs: Tensors
    run: Callable[[Tensors], Tensors]


@dataclass(frozen=True)
class Traced:
    """A program with parameters that have no values, and what runs its parts."""

    program: ProgramGraphs
    mode: FakeTensorMode
    parameters: Tensors
    state: Tensors
    steps: TrainingSteps

    def empty(self, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        """A tensor without values."""
        with self.mode:
            return torch.empty(shape, dtype=dtype)

    def bound(self, values: Tensors) -> Tensors:
        """The state that is given, after the parameters that are given have been bound."""
        self.steps.bind({key: values.get(key, value) for key, value in self.parameters.items()})
        return {name: values[name] for name in self.state}

    def running(self, program: ProgramGraphs) -> Traced:
        """The same of a program with other graphs."""
        return replace(self, program=program, steps=find_trainer().steps_on(program, self.parameters, train=True))

    def of(self, keys: Iterable[str]) -> Tensors:
        """Parameters by key, in the program's order."""
        wanted = set(keys)
        return {key: value for key, value in self.parameters.items() if key in wanted}


def subject_of(program: ProgramGraphs) -> Traced:
    """What entries are made of."""
    mode = FakeTensorMode()
    with mode:
        parameters = {key: torch.empty(program.params[key].shape, dtype=t) for key, t in dtypes_of(program).items()}
        state = {spec.name: spec.first(1) for spec in program.all_states()}
    return Traced(program, mode, parameters, state, find_trainer().steps_on(program, parameters, train=True))


def in_block(i: int) -> AbstractContextManager[None]:
    """Within it, what is traced is noted to be of that block."""
    return annotate({BLOCK: i})


def block_of(node: Node) -> int | None:
    """The block that a traced node is of, if it is of one."""
    found: int | None = node.meta.get("custom", {}).get(BLOCK)
    return found


def keys_of(graph: Graph) -> list[str]:
    """The names of a graph's ports for parameters."""
    return [name for kind in PARAMETERS for name in graph.ports(kind)]


def changed(old: Tensors, new: Tensors) -> Tensors:
    """What of a state is another tensor than before."""
    return {name: value for name, value in new.items() if value is not old[name]}
