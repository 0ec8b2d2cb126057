"""sleep_replay.onnx and sleep_recurrent.onnx: state -> state, consolidated and evicted."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch

from sleepc.backends.onnx.call import Style
from sleepc.backends.onnx.control import repeat
from sleepc.backends.onnx.emit import Emitter, declare
from sleepc.backends.onnx.ports import ports_of
from sleepc.backends.onnx.settling import moves, where
from sleepc.backends.onnx.translate import translate
from sleepc.backends.onnx.wake import StepGraph
from sleepc.backends.onnx.weights import Weights
from sleepc.ir.program import Learn, ProgramGraphs
from sleepc.ir.roles import TAKEN
from sleepc.ir.states import with_role
from sleepc.ir.types import TensorType


def sleep_graph(program: ProgramGraphs, weights: Weights, style: Style, *, recurrent: bool = False) -> StepGraph:
    """Consolidate and evict. Input in addition to the state: passes [] (N). With `recurrent` the blocks of the
    program's loop run again over the window, N - 1 times, before memories have their final values; otherwise a sleep
    reads records and memories only, unless it learns.
    """
    assert program.clock is not None
    e = Emitter(weights)
    step = StepGraph(e)
    passes = step.input("passes", TensorType(torch.int64, ()))
    specs = {s.name: s for s in program.all_states()}
    states = {name: step.input(name, spec.type()) for name, spec in specs.items()}
    e.sizes = {"B": e("Shape", states["since"], start=0, end=1), "T": e.ints(program.window)}
    clock: dict[str, Any] = dict(translate(e, program.clock, ports_of(program.clock, states), style))
    new = {s.name: clock.pop(s.name) for s in program.states}
    if program.encode is not None:
        with e.part("encode."):
            clock |= translate(e, program.encode.step, ports_of(program.encode.step, states), style)
    replays = passes if program.loop is None else None
    for i, block in enumerate(program.layout):
        cls = program.classes[block.cls]
        assert cls.sleep is not None
        names = program.state_names(i)
        own = {local: states[full] for local, full in names.items()} | program.soft_of(i, clock)
        with e.part(f"block.{i}."), e.knowing(program.sizes(i)):
            results = translate(e, cls.sleep, ports_of(cls.sleep, {**clock, **own}, block.params), style, replays)
        new |= {names[name]: value for name, value in results.items()}
    if recurrent:
        new |= _again(program, e, states, new, passes, style)
    if program.learn is not None:
        new |= _learned(program.learn, e, states, style)
    for name, value in new.items():
        step.replace(name, value, specs[name].type())
    return step


def _learned(learn: Learn, e: Emitter, old: dict[str, ir.Value], style: Style) -> dict[str, ir.Value]:
    """Steps of gradient descent on the window that `old` holds: the first, and then the others as a Loop."""

    def step(known: dict[str, ir.Value]) -> dict[str, ir.Value]:
        return translate(e, learn.step, ports_of(learn.step, {**old, **known}), style)

    with e.part("learn."):
        new = step({}) if learn.steps else {}
        if learn.steps < 2:
            return new
        names = list(new)

        def body(carried: Any) -> list[ir.Value]:
            found = step(dict(zip(names, carried, strict=True)))
            return [found[name] for name in names]

        last = repeat(e, e.const(learn.steps, torch.int64), list(new.values()), body)
    return dict(zip(names, last, strict=True))


def _again(
    program: ProgramGraphs,
    e: Emitter,
    old: dict[str, ir.Value],
    new: dict[str, ir.Value],
    passes: ir.Value,
    style: Style,
) -> dict[str, ir.Value]:
    """Recurrent passes over the window that `old` holds, on the memories of `new` (semantics.md, section 4)."""
    loop = program.loop
    assert loop is not None
    values: dict[str, Any] = dict(translate(e, loop.given, ports_of(loop.given, old), style))
    hidden = program.loop_hidden()
    assert hidden is not None, "the program was checked"
    first = e("Squeeze", old[hidden.name], e.ints(1))
    first.shape, first.type = ir.Shape(["B", program.window, program.hidden]), old[hidden.name].type
    live = _each_row(e, True, torch.bool)  # pass 1 has been written
    inner = [name for name in _changed(program, loop.start, loop.end)]
    kinds = {s.name: s.type() for s in program.all_states()}
    kept = {s.name: old[s.name] for s in with_role(program.all_states(), "kept")}  # seen as the window saw them

    def body(carried: Any) -> list[ir.Value]:
        given = {**values, "live": live, "h": carried[0]}
        known = dict(zip(inner, carried[1:], strict=False))
        h, changed = _pass(program, e, range(loop.start, loop.end), given, old | new | known | kept, style)
        if not loop.settle:
            return [h, *(changed[name] for name in inner)]
        taken, moving = carried[-2:]
        after = [where(e, moving, changed[n], known[n], len(kinds[n].dims)) for n in inner]
        still = moves(e, list(known.values()), after, [kinds[n] for n in inner], loop.settle)
        taken = e("Add", taken, e.cast(moving, torch.int64))
        return [where(e, moving, h, carried[0], 3), *after, taken, e("And", moving, still)]

    for name in inner:
        value = new.get(name, old[name])
        if value.shape is None:
            value.shape, value.type = ir.Shape(list(kinds[name].dims)), old[name].type
    start = [first, *(new.get(name, old[name]) for name in inner)]
    if loop.settle:
        start += [_each_row(e, 1, torch.int64), _each_row(e, True, torch.bool)]
    h, *carried = repeat(e, passes, start, body, while_any=bool(loop.settle))
    refined = dict(zip(inner, carried, strict=False))
    rest = range(loop.end, len(program.layout))
    _, after = _pass(program, e, rest, {**values, "h": h}, old | new | refined | kept, style)
    return refined | after | ({TAKEN: carried[-2]} if loop.settle else {})


def _each_row(e: Emitter, value: Any, dtype: torch.dtype) -> ir.Value:
    """The value in every row [B]."""
    rows = e("Expand", e.const(value, dtype), e.sizes["B"])
    declare(rows, TensorType(dtype, ("B",)))
    return rows


def _changed(program: ProgramGraphs, start: int, end: int) -> list[str]:
    """States that the blocks' passes write."""
    found = []
    for i in range(start, end):
        again = program.classes[program.layout[i].cls].again
        assert again is not None
        names = program.state_names(i)
        found += [names[name] for name in again.results() if name != "h"]
    return found


def _pass(
    program: ProgramGraphs,
    e: Emitter,
    blocks: range,
    given: dict[str, Any],
    states: dict[str, ir.Value],
    style: Style,
) -> tuple[ir.Value, dict[str, ir.Value]]:
    """The blocks once over the window: (h, what they write)."""
    h: ir.Value = given["h"]
    changed: dict[str, ir.Value] = {}
    for i in blocks:
        block = program.layout[i]
        cls = program.classes[block.cls]
        assert cls.again is not None
        names = program.state_names(i)
        own = {local: states[full] for local, full in names.items()}
        with e.part(f"again.{i}."), e.knowing(program.sizes(i)):
            results = translate(e, cls.again, ports_of(cls.again, {**given, "h": h, **own}, block.params), style)
        h = results.pop("h")
        changed |= {names[name]: value for name, value in results.items()}
    return h, changed
