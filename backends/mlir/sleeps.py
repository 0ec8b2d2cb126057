"""The functions of a sleep. The host calls one for every pass after the first, so it may take any number of them.

    sleep        state -> state' after pass 1 and, of a program whose sleeps run blocks again, the window's h [1,L,d]
    again        state before the sleep, memories as they were written last (`new.`), h -> the same after one pass more;
                 of a program that settles also how much it `moved` them [1]
    behind       the same of the blocks behind those that run again, after the last pass

A program that replays, and whose replays stand alone, has `again` without h; in one where they do not, `sleep` has all
passes.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from torch.fx import Node

from sleepc.backends.mlir.manifest import MOVED, NEW
from sleepc.backends.mlir.traced import EntryPoint, Tensors, Traced, changed, in_block, keys_of
from sleepc.ir.program import Loop, ProgramGraphs
from sleepc.ir.states import with_role
from sleepc.passes.analysis.sleeps import replay_nodes, replays


def sleeps_of(subject: Traced) -> list[EntryPoint]:
    """The functions of a sleep: `sleep`, and those of further passes if there are any."""
    program = subject.program
    if program.loop is not None:
        return _looping(subject, program.loop)
    if not replays(program) or not _replays_stand_alone(program):
        return [_sleep(subject)]
    first, more = (subject.running(_replaying(program, more=more)) for more in (False, True))
    memories = [spec.name for spec in with_role(program.all_states(), "memory")]
    again = _sleep(more)

    def run(values: Tensors) -> Tensors:
        found = again.run({**values, **{name: values[f"{NEW}{name}"] for name in memories}})
        return {name: found[name] for name in memories if name in found}

    inputs = {**subject.state, **_new(subject, memories)}
    return [_sleep(first), EntryPoint("again", again.parameters, inputs, run)]


def _sleep(subject: Traced) -> EntryPoint:
    def run(values: Tensors) -> Tensors:
        state = subject.bound(values)
        clock, new = subject.steps.begin_sleep(state)
        new |= subject.steps.learned(state)
        for i in range(len(subject.program.layout)):
            with in_block(i):
                new |= subject.steps.sleep_block(i, clock, state)
        return changed(state, new) | ({"h": subject.steps.begin_refine(state)["h"]} if subject.program.loop else {})

    before = (subject.program.learn, subject.program.encode)
    keys = [*_sleep_parameters(subject.program), *(key for each in before if each for key in keys_of(each.step))]
    return EntryPoint("sleep", subject.of(keys), dict(subject.state), run)


def _looping(subject: Traced, loop: Loop) -> list[EntryPoint]:
    """`sleep`, `again` and, if blocks stand behind the loop, `behind`."""
    sleep, steps = _sleep(subject), subject.steps
    with subject.mode:
        h = sleep.run({**subject.parameters, **subject.state})["h"]
    given = keys_of(loop.given)

    def refined(blocks: range, values: Tensors) -> Tensors:
        old = subject.bound(values)
        new, read = old | _newest(values), {**steps.begin_refine(old), "h": values["h"]}
        written: Tensors = {}
        for i in blocks:
            with in_block(i):
                read["h"], more = steps.refine_block(i, read, new)
            written |= more
        if blocks.start == loop.end:
            return written
        return {"h": read["h"], **written} | ({MOVED: steps.moved(new, written)} if loop.settle else {})

    def entry(name: str, blocks: range) -> EntryPoint:
        inputs = {**subject.state, **_new(subject, _read_again(subject.program, blocks)), "h": h}
        return EntryPoint(
            name, subject.of([*given, *_again_parameters(subject.program, blocks)]), inputs, partial(refined, blocks)
        )

    found = [sleep, entry("again", range(loop.start, loop.end))]
    after = range(loop.end, len(subject.program.layout))
    return [*found, entry("behind", after)] if after else found


def _new(subject: Traced, names: Iterable[str]) -> Tensors:
    """Examples of states as a pass before has left them."""
    return {f"{NEW}{name}": subject.state[name] for name in names}


def _newest(values: Tensors) -> Tensors:
    return {name.removeprefix(NEW): value for name, value in values.items() if name.startswith(NEW)}


def _read_again(program: ProgramGraphs, blocks: range) -> list[str]:
    """The states that passes of these blocks read as they were written last; kept pairs are those of before."""
    found = []
    for i in blocks:
        cls = program.classes[program.layout[i].cls]
        ports = cls.again.ports("state") if cls.again else {}
        names = program.state_names(i)
        found += [names[s.name] for s in cls.states if s.name in ports and s.role != "kept"]
    return found


def _sleep_parameters(program: ProgramGraphs) -> list[str]:
    sleeps = [(block, program.classes[block.cls].sleep) for block in program.layout]
    return [block.params[port] for block, graph in sleeps if graph for port in keys_of(graph)]


def _again_parameters(program: ProgramGraphs, blocks: range) -> list[str]:
    again = [(program.layout[i], program.classes[program.layout[i].cls].again) for i in blocks]
    return [block.params[port] for block, graph in again if graph for port in keys_of(graph)]


def _replaying(program: ProgramGraphs, *, more: bool) -> ProgramGraphs:
    """The program whose replays are their first pass, or one pass `more` over what was written."""
    program = program.clone()
    for node in replay_nodes(program):
        node.kwargs = {**node.kwargs, **({"passes": 2, "written": True} if more else {"passes": 1})}
    return program


def _replays_stand_alone(program: ProgramGraphs) -> bool:
    """Does every replay take memories as they are in the state, and is what it gives only written there?"""
    nodes = replay_nodes(program)
    taken = [each for node in nodes for each in node.args[4]]  # type: ignore[union-attr]
    users = [user for node in nodes for part in node.users for user in part.users]
    return all(isinstance(each, Node) and each.op == "placeholder" for each in taken) and all(
        user.op == "output" for user in users
    )
