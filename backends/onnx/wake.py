"""wake.onnx: tokens and state -> logits and what changes of the state."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
import torch

from sleepc.backends.onnx.blocks import all_blocks
from sleepc.backends.onnx.call import Style
from sleepc.backends.onnx.emit import Emitter, declare
from sleepc.backends.onnx.manifest import Change, Columns, Replaced, Unchanged
from sleepc.backends.onnx.ports import ports_of
from sleepc.backends.onnx.translate import translate
from sleepc.backends.onnx.weights import Weights
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.types import TensorType


@dataclass
class StepGraph:
    """A graph that maps state to state: its nodes, its inputs and outputs, and how the host makes the new state."""

    e: Emitter
    inputs: dict[str, ir.Value] = field(default_factory=dict)
    outputs: dict[str, ir.Value] = field(default_factory=dict)
    changes: dict[str, Change] = field(default_factory=dict)

    def input(self, name: str, type_: TensorType) -> ir.Value:
        """A new input."""
        value = ir.Value(name=name)
        declare(value, type_)
        self.inputs[name] = value
        return value

    def output(self, name: str, value: ir.Value, type_: TensorType) -> None:
        """A new output; what is an input, a constant or an output already is passed through a node of its own."""
        taken = any(value is other for other in self.outputs.values())
        if value.producer() is None or taken:
            value = self.e("Identity", value)
        value.name = name
        declare(value, type_)
        self.outputs[name] = value

    def replace(self, state: str, value: ir.Value, type_: TensorType) -> None:
        """The state's new value is an output."""
        self.output(f"new.{state}", value, type_)
        self.changes[state] = Replaced(output=f"new.{state}")


def wake_graph(program: ProgramGraphs, weights: Weights, style: Style) -> StepGraph:
    """The wake step. Inputs in addition to the state: tokens [B,T], lengths [B], logits_at [B,M] (those whose logits
    are wanted). In a style for one token T is 1.
    """
    e = Emitter(weights)
    with e.knowing({"T": 1}) if style.tokens == "one" else nullcontext():
        return _wake(program, e, style)


def _wake(program: ProgramGraphs, e: Emitter, style: Style) -> StepGraph:
    step = StepGraph(e)
    tokens = step.input("tokens", e.named(TensorType(torch.int64, ("B", "T"))))
    lengths = step.input("lengths", TensorType(torch.int64, ("B",)))
    wanted = step.input("logits_at", TensorType(torch.int64, ("B", "M")))
    states = {s.name: step.input(s.name, s.type()) for s in program.all_states()}
    e.sizes = {
        "B": e("Shape", lengths, start=0, end=1),
        "T": e.ints(1) if style.tokens == "one" else e("Shape", tokens, start=1, end=2),
        "M": e("Shape", wanted, start=1, end=2),
    }
    types = {name: node.meta["type"] for name, node in program.embed.results().items()}
    ports = ports_of(program.embed, {**states, "tokens": tokens, "lengths": lengths})
    values: dict[str, Any] = dict(translate(e, program.embed, ports, style))
    for spec in program.states:
        if spec.name in values:
            step.replace(spec.name, values.pop(spec.name), spec.type())
    blocks = all_blocks(program, e, values, states, style)
    types |= {name: type_ for name, (_, type_) in blocks.outputs.items()}
    types = {name: e.named(type_) for name, type_ in types.items() if isinstance(type_, TensorType)}
    _logits(program, step, {**values, "h": blocks.h}, wanted, style)
    for name, (value, _) in blocks.outputs.items():
        step.output(name, value, types[name])
    step.changes |= blocks.changes
    for name in {change.slots for change in step.changes.values() if isinstance(change, Columns)}:
        step.output(name, values[name], types[name])
    for name in states:
        step.changes.setdefault(name, Unchanged())
    return step


def _logits(program: ProgramGraphs, step: StepGraph, values: dict[str, Any], wanted: ir.Value, style: Style) -> None:
    """Over a large vocabulary the head runs for the wanted tokens only, unless it reads more than h."""
    e = step.e
    at = e("Unsqueeze", wanted, e.ints(2))

    def pick(x: ir.Value) -> ir.Value:
        return e("GatherND", x, at, batch_dims=1)

    early = set(program.head.ports("input")) == {"h"}
    if early:
        values = {**values, "h": pick(values["h"])}
        e.rename("T", "M")
    logits = translate(e, program.head, ports_of(program.head, values), style)["logits"]
    logits = logits if early else pick(logits)
    step.output("logits", logits, TensorType(program.dtype, ("B", "M", program.vocab)))
