"""The functions of an export: what of a program each computes, in tensors of fixed shapes, for one row.

    token        one token: state, tokens [1,1] -> logits [1,1,V], state'
    chunk        C tokens, of which `lengths` are there (the others change nothing) -> h [1,C,d], state'
    logits       the logits [1,C,V] of such a chunk;   last: those of its last token, [1,1,V]

Those of a sleep are in sleeps.py. Rows are independent of each other, so a batch is as many calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor

from sleepc.backends.mlir.sleeps import sleeps_of
from sleepc.backends.mlir.traced import EntryPoint, Tensors, Traced, changed, in_block, keys_of, subject_of
from sleepc.backends.table import find_trainer
from sleepc.ir.program import ProgramGraphs


def entries_of(program: ProgramGraphs, chunk: int) -> list[EntryPoint]:
    """The functions of a program whose chunks have `chunk` tokens."""
    subject = subject_of(program)
    read = _read(subject, chunk)
    with subject.mode:
        seen = read.run({**subject.parameters, **read.inputs})
    shown = {name: seen[name] for name in program.head.ports("input")}
    return [_token(subject), read, _logits(subject, shown), _last(subject, shown), *sleeps_of(subject)]


def parts_of(program: ProgramGraphs, name: str, chunk: int) -> Iterator[tuple[str, EntryPoint]]:
    """What the function of that name is made of, by what people call it: to find the part that does not compile. Of
    blocks of one class the first.
    """
    subject = subject_of(program)
    firsts = {block.cls: i for i, block in reversed(list(enumerate(program.layout)))}
    counts, steps, state = {"token": 1, "chunk": chunk}, subject.steps, subject.state
    refines = program.loop is not None and name in ("again", "behind")
    if name not in (*counts, "sleep", "again", "behind"):
        return
    part: Callable[..., Any] = steps.wake_block if name in counts else steps.sleep_block
    with subject.mode:
        if name in counts:
            values, _ = steps.begin(state, *_call(subject, counts[name]).values())
        elif refines:
            values, part = steps.begin_refine(state), steps.refine_block
            firsts = {cls: i for cls, i in firsts.items() if program.classes[cls].again}
        else:
            values, _ = steps.begin_sleep(state)
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


def _wake(subject: Traced, values: Tensors) -> tuple[dict[str, Any], Tensors]:
    """What the head reads, and what is new of the state."""
    state = subject.bound(values)
    seen, new = subject.steps.begin(state, values["tokens"], values["lengths"])
    for i in range(len(subject.program.layout)):
        with in_block(i):
            seen["h"], written = subject.steps.wake_block(i, seen, state)
        new |= written
    return seen, changed(state, new)


def _call(subject: Traced, count: int) -> Tensors:
    return {"tokens": subject.empty(1, count), "lengths": subject.empty(1)}


def _wake_parameters(subject: Traced) -> list[str]:
    program = subject.program
    blocks = [block.params[port] for block in program.layout for port in keys_of(program.classes[block.cls].wake)]
    return [*keys_of(program.embed), *blocks]


def _head_parameters(subject: Traced) -> list[str]:
    return keys_of(subject.program.head)
