"""Do the graphs of a program at level STEP fit each other? V30: what one reads another gives, or the program declares,
in the same type. V31: a state is declared once, and keeps its type. V32: no graph is left that sleeps are made with.
V33: a state that a block only reads is an earlier block's, which does not write it in place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from sleepc.ir import dims
from sleepc.ir.diagnose import InvalidProgram, fault
from sleepc.ir.graph import Graph
from sleepc.ir.levels import writes_state
from sleepc.ir.program import SOFT, BlockClass, ProgramGraphs
from sleepc.ir.states import StateSpec, with_own
from sleepc.ir.types import TensorType, Type

Types = Mapping[str, Type]
CALL = {"tokens": TensorType(torch.int64, ("B", "T")), "lengths": TensorType(torch.int64, ("B",))}
LIVE = {"live": TensorType(torch.bool, ("B",))}  # in the passes of a loop: its memories have been written


def check_fit(program: ProgramGraphs) -> None:
    """Raise InvalidProgram, whose `code` is the broken rule, unless graphs, states and layout fit each other."""
    _check_states(program)
    _check_rings(program)
    counters = _types(program.states)
    _reads(program.embed, CALL, counters)
    values = _gives(program.embed, needed=("h",), may=counters)
    _reads(program.head, values, {})
    _gives(program.head, needed=("logits",), may={})
    clock: Types = {}
    if program.clock is not None:
        _reads(program.clock, {}, counters)
        clock = _gives(program.clock, needed=counters, may=counters)
    given: Types = {}
    if program.loop is not None:
        _reads(program.loop.given, {}, _types(program.all_states()))
        given = {**_gives(program.loop.given, needed=(), may={}), **LIVE}
        if program.loop_hidden() is None:
            raise InvalidProgram("V31", f"the loop needs the hidden states of block {program.loop.end - 1}")
    if program.learn is not None:
        states = _types(program.all_states())
        _reads(program.learn.step, {}, states)
        _gives(program.learn.step, needed=(), may=states, others=False)
    for name, cls in program.classes.items():
        soft = _soft(program, name)
        _check_class(cls, values, {**clock, **soft}, given, program.window)


def _soft(program: ProgramGraphs, name: str) -> Types:
    """What sleeps of the blocks of a class read of what `encode` makes: the same for all of them."""
    if program.encode is None:
        return {}
    _reads(program.encode.step, {}, _types(program.all_states()))
    made = _gives(program.encode.step, needed=(), may={})
    found = [program.soft_of(i, made) for i, block in enumerate(program.layout) if block.cls == name]
    for other in found[1:]:
        if {n: str(t) for n, t in other.items()} != {n: str(t) for n, t in found[0].items()}:
            raise fault("V30", f"blocks of {name} get other soft tokens", program.encode.step)
    return {**{n: t for n, t in made.items() if n.startswith(SOFT)}, **found[0]}


def _check_class(cls: BlockClass, values: Types, clock: Types, given: Types, window: int) -> None:
    own, may = _types(cls.states), _types(with_own(cls.states))
    if cls.turn is not None:
        raise fault("V32", "a graph that turns keys belongs in the class's sleep", cls.turn)
    for graph in cls.graphs():
        for name in graph.returns:
            if name in own and name not in may:
                raise fault("V33", f"state {name} is given, and another block's", graph)
    _reads(cls.wake, values, own)
    after = _gives(cls.wake, needed=("h",), may=may)
    if str(after["h"]) != str(values["h"]):
        raise fault("V30", f"h is {after['h']} after the block and {values['h']} before it", cls.wake)
    if cls.sleep is not None:
        _reads(cls.sleep, clock, own)
        _gives(cls.sleep, needed=(), may=may, others=False)
    if cls.again is not None:
        _reads(cls.again, {**given, "h": values["h"]}, own, tokens=window)
        _gives(cls.again, needed=("h",), may=may)


def _reads(graph: Graph, inputs: Types, states: Types, *, tokens: int | None = None) -> None:
    """Is there what a graph reads? With `tokens` it runs on so many."""
    for kind, there in (("input", inputs), ("state", states)):
        for name, node in graph.ports(kind).items():  # type: ignore[arg-type]  # one of the kinds
            found, read = there.get(name), node.meta["type"]
            if found is None or _with(found, tokens) != _with(read, tokens):
                what = f"{name} is read as {read}, and " + ("nothing gives it" if found is None else f"is {found}")
                raise fault("V30", what, graph, node)


def _with(type_: Type, tokens: int | None) -> str:
    """The type's text, if T is a number."""
    if tokens is None or not isinstance(type_, TensorType):
        return str(type_)
    return str(TensorType(type_.dtype, tuple(dims.substituted(dim, "T", tokens) for dim in type_.dims)))


def _gives(graph: Graph, *, needed: Iterable[str], may: Types, others: bool = True) -> dict[str, Type]:
    """What a graph returns in addition to states (`may`), whose types it keeps."""
    found = {name: node.meta["type"] for name, node in graph.results().items()}
    for name in needed:
        if name not in found:
            raise fault("V30", f"the graph gives no {name}", graph)
    for name, type_ in found.items():
        if name in may and str(type_) != str(may[name]):
            raise fault("V31", f"state {name} is given as {type_}, and is {may[name]}", graph)
        if name not in may and not others:
            raise fault("V31", f"{name} is given, and is not a state", graph)
    return {name: type_ for name, type_ in found.items() if name not in may}


def _check_states(program: ProgramGraphs) -> None:
    names = [spec.name for spec in program.all_states()]
    if len(set(names)) != len(names):
        raise InvalidProgram("V31", "two states have one name")
    for spec in program.all_states():
        if spec.dims[0] != "B" or not all(isinstance(dim, int) for dim in spec.dims[1:]):
            raise InvalidProgram("V31", f"state {spec.name} has dims {list(spec.dims)}: B, then numbers")


def _check_rings(program: ProgramGraphs) -> None:
    for i, block in enumerate(program.layout):
        read = [spec for spec in program.classes[block.cls].states if spec.update == "read"]
        if block.ring is None and not read:
            continue
        if block.ring is None or not read or not 0 <= block.ring < i:
            raise InvalidProgram("V33", f"block {i} reads states of block {block.ring}, and {len(read)} are only read")
        owner = program.classes[program.layout[block.ring].cls]
        there = _types(with_own(owner.states))
        for spec in read:
            if spec.name not in there or str(there[spec.name]) != str(spec.type()):
                raise InvalidProgram("V33", f"block {i} reads {spec.name} of block {block.ring}, which has none such")
            new = owner.wake.results().get(spec.name)
            if new is not None and writes_state(new.target) and new.args[0] is owner.wake.ports()[spec.name]:
                raise fault("V33", f"{spec.name} is written in place, and read by block {i} later", owner.wake, new)


def _types(specs: Iterable[StateSpec]) -> dict[str, Type]:
    return {spec.name: spec.type() for spec in specs}
