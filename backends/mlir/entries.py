"""The functions of an export: what of a program each computes, in tensors of fixed shapes, for one row.

    token        one token: state, tokens [1,1] -> logits [1,1,V], state'
    chunk        C tokens, of which `lengths` are there (the others change nothing) -> h [1,C,d], state'
    logits       the logits [1,C,V] of such a chunk;   last: those of its last token, [1,1,V]
    sleep        state -> state', with all passes of the program

Rows are independent of each other, so a batch is as many calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from sleepc.backends.table import find_trainer
from sleepc.backends.training_steps import TrainingSteps
from sleepc.ir.graph import PARAMETERS, Graph
from sleepc.ir.parameters import dtypes_of
from sleepc.ir.program import ProgramGraphs

Tensors = dict[str, Tensor]


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


def entries_of(program: ProgramGraphs, chunk: int) -> list[EntryPoint]:
    """The functions of a program whose chunks have `chunk` tokens."""
    subject = subject_of(program)
    read = _read(subject, chunk)
    with subject.mode:
        seen = read.run({**subject.parameters, **read.inputs})
    shown = {name: seen[name] for name in program.head.ports("input")}
    return [_token(subject), read, _logits(subject, shown), _last(subject, shown), _sleep(subject)]


def parts_of(program: ProgramGraphs, name: str, chunk: int) -> Iterator[tuple[str, EntryPoint]]:
    """What the function of that name is made of, by what people call it: to find the part that does not compile. Of
    blocks of one class the first.
    """
    subject = subject_of(program)
    firsts = {block.cls: i for i, block in reversed(list(enumerate(program.layout)))}
    counts, steps = {"token": 1, "chunk": chunk}, subject.steps
    if name not in (*counts, "sleep"):
        return
    part: Callable[..., Any] = steps.wake_block if name in counts else steps.sleep_block
    with subject.mode:
        if name in counts:
            values, _ = steps.begin(subject.state, *_call(subject, counts[name]).values())
        else:
            values, _ = steps.begin_sleep(subject.state)
    whole = {**subject.parameters, **subject.state, **{k: v for k, v in values.items() if isinstance(v, Tensor)}}
    for i in sorted(firsts.values()):
        yield f"block {i}", EntryPoint("part", {}, whole, partial(_part, subject, partial(part, i), values))


def _part(subject: Traced, part: Callable[..., Any], values: dict[str, Any], given: Tensors) -> Tensors:
    """One block on tensors that are given by name."""
    subject.steps.bind({key: given[key] for key in subject.parameters})
    found = part({**values, **given}, {name: given[name] for name in subject.state})
    return found if isinstance(found, dict) else {"h": found[0], **found[1]}


def _token(subject: Traced) -> EntryPoint:
    head = find_trainer().runner(subject.program.head)

    def run(values: Tensors) -> Tensors:
        seen, new = _wake(subject, values)
        return {"logits": head({**values, **seen})["logits"], **new}

    keys = [*_wake_parameters(subject), *_head_parameters(subject)]
    return EntryPoint("token", subject.of(keys), {**subject.state, **_call(subject, 1)}, run)


def _read(subject: Traced, chunk: int) -> EntryPoint:
    shown = list(subject.program.head.ports("input"))

    def run(values: Tensors) -> Tensors:
        seen, new = _wake(subject, values)
        return {**{name: seen[name] for name in shown}, **new}

    return EntryPoint("chunk", subject.of(_wake_parameters(subject)), {**subject.state, **_call(subject, chunk)}, run)


def _logits(subject: Traced, shown: Tensors) -> EntryPoint:
    head = find_trainer().runner(subject.program.head)
    return EntryPoint("logits", subject.of(_head_parameters(subject)), shown, head)


def _last(subject: Traced, shown: Tensors) -> EntryPoint:
    head = find_trainer().runner(subject.program.head)

    def run(values: Tensors) -> Tensors:
        at = (values["lengths"] - 1).clamp(min=0)
        if set(shown) == {"h"}:  # the head, over a large vocabulary, is for one token only
            return head({**values, "h": values["h"].index_select(1, at)})
        return {"logits": head(values)["logits"].index_select(1, at)}

    return EntryPoint("last", subject.of(_head_parameters(subject)), {**shown, "lengths": subject.empty(1)}, run)


def _sleep(subject: Traced) -> EntryPoint:
    def run(values: Tensors) -> Tensors:
        state = {name: values[name] for name in subject.state}
        subject.steps.bind({key: values.get(key, value) for key, value in subject.parameters.items()})
        return _changed(state, subject.steps.sleep_tensors(state))

    return EntryPoint("sleep", subject.of(_sleep_parameters(subject.program)), dict(subject.state), run)


def _wake(subject: Traced, values: Tensors) -> tuple[dict[str, Any], Tensors]:
    """What the head reads, and what is new of the state."""
    state = {name: values[name] for name in subject.state}
    subject.steps.bind({key: values.get(key, value) for key, value in subject.parameters.items()})
    seen, new = subject.steps.wake_blocks(state, values["tokens"], values["lengths"])
    return seen, _changed(state, new)


def _changed(old: Tensors, new: Tensors) -> Tensors:
    return {name: value for name, value in new.items() if value is not old[name]}


def _call(subject: Traced, count: int) -> Tensors:
    return {"tokens": subject.empty(1, count), "lengths": subject.empty(1)}


def _keys(graph: Graph) -> list[str]:
    """The names of a graph's ports for parameters."""
    return [name for kind in PARAMETERS for name in graph.ports(kind)]


def _wake_parameters(subject: Traced) -> list[str]:
    program = subject.program
    blocks = [block.params[port] for block in program.layout for port in _keys(program.classes[block.cls].wake)]
    return [*_keys(program.embed), *blocks]


def _head_parameters(subject: Traced) -> list[str]:
    return _keys(subject.program.head)


def _sleep_parameters(program: ProgramGraphs) -> list[str]:
    found = _keys(program.loop.given) if program.loop else []
    for block in program.layout:
        cls = program.classes[block.cls]
        found += [block.params[port] for graph in (cls.sleep, cls.again) if graph for port in _keys(graph)]
    return found
