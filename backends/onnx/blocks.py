"""All blocks of a wake step, one after the other, and what they change of the state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import onnx_ir as ir
import torch

from sleepc.backends.onnx.abreast import Abreast
from sleepc.backends.onnx.call import Style
from sleepc.backends.onnx.control import choose, is_one_token
from sleepc.backends.onnx.emit import Emitter
from sleepc.backends.onnx.manifest import Change, Columns, Replaced
from sleepc.backends.onnx.ports import ports_of
from sleepc.backends.onnx.translate import SlotsWritten, is_column, translate
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.states import StateSpec
from sleepc.ir.types import TensorType

Kind = tuple[str, tuple[int | str, ...], torch.dtype, str]


@dataclass
class Blocks:
    """h [B,T,d] after the last block; outputs of the graph by name, with their types; and how states change."""

    h: ir.Value
    outputs: dict[str, tuple[ir.Value, TensorType]] = field(default_factory=dict)
    changes: dict[str, Change] = field(default_factory=dict)


def all_blocks(
    program: ProgramGraphs, e: Emitter, values: Mapping[str, Any], states: Mapping[str, ir.Value], style: Style
) -> Blocks:
    """The blocks; twice where there are weights of 4 bits, since the fastest products for one token and for many are
    different kernels of ONNX Runtime's: the graph chooses when it runs.
    """
    if not style.columns or style.tokens != "any" or not _has_four_bits(program, e, style):
        return _blocks(program, e, values, states, style)
    made: list[Blocks] = []

    def branch(tokens: Any) -> list[ir.Value]:
        with e.knowing({"T": 1}) if tokens == "one" else nullcontext():
            made.append(_blocks(program, e, values, states, replace(style, tokens=tokens)))
        return [made[-1].h, *(value for value, _ in made[-1].outputs.values())]

    width = TensorType(program.dtype, ("B", "T", program.hidden))
    h, *found = choose(
        e,
        is_one_token(e),
        lambda: branch("one"),
        lambda: branch("many"),
        lambda: [width, *(type_ for _, type_ in made[-1].outputs.values())],
    )
    outputs = {name: (value, made[0].outputs[name][1]) for name, value in zip(made[0].outputs, found, strict=True)}
    return Blocks(h, outputs, made[0].changes)


def _has_four_bits(program: ProgramGraphs, e: Emitter, style: Style) -> bool:
    """Are most weights of the blocks that are written in few bits of 4 bits?"""
    if style.packed:
        return True
    keys = {key for block in program.layout for key in block.params.values()} if style.precision == "source" else ()
    sizes: Counter[int] = Counter()
    for key in keys:
        how = e.weights.packing(key)
        sizes[how.bits if how else 0] += prod(program.params[key].shape)
    return style.precision == "int4" or sizes[4] > sizes[8]


def _blocks(
    program: ProgramGraphs, e: Emitter, values: Mapping[str, Any], states: Mapping[str, ir.Value], style: Style
) -> Blocks:
    found = Blocks(values["h"])
    columns: dict[Kind, dict[str, ir.Value]] = {}
    for i, block in enumerate(program.layout):
        cls, names = program.classes[block.cls], program.state_names(i)
        own = {local: states[full] for local, full in names.items()}
        with e.part(f"block.{i}."), e.knowing(program.sizes(i)):
            ports = ports_of(cls.wake, {**values, **own, "h": found.h}, block.params)
            written = [s.name for s in cls.states if style.columns and is_column(cls.wake, s.name)]
            results = translate(e, cls.wake, ports, style, columns=written)
            found.h = results["h"]
            for spec in cls.states:
                value = results.get(spec.name)
                if isinstance(value, SlotsWritten):
                    slots = cls.wake.results()[spec.name].args[2].meta["port"].name  # type: ignore[union-attr]
                    columns.setdefault((spec.name, spec.dims, spec.dtype, slots), {})[names[spec.name]] = value.new
                elif value is not None:
                    _replace(found, names[spec.name], value, spec)
    _join(found, e, columns)
    return found


def _replace(found: Blocks, name: str, value: ir.Value, spec: StateSpec) -> None:
    found.outputs[f"new.{name}"] = (value, spec.type())
    found.changes[name] = Replaced(output=f"new.{name}")


def _join(found: Blocks, e: Emitter, columns: dict[Kind, dict[str, ir.Value]]) -> None:
    """What is written into windows leaves the graph as few tensors: states of one kind side by side, as heads."""
    written = [value for parts in columns.values() for value in parts.values()]
    abreast = Abreast(e, [found.h, *written, *(value for value, _ in found.outputs.values())])
    for (name, dims, dtype, slots), parts in columns.items():
        output = f"columns.{name}"
        while output in found.outputs:
            output += "'"
        values = list(parts.values())
        joined = abreast.join(values, axis=1, rank=len(dims)) if len(values) > 1 else values[0]
        type_ = TensorType(dtype, ("B", int(dims[1]) * len(parts), "T", *dims[3:]))
        found.outputs[output] = (joined, type_)
        for row, state in enumerate(parts):
            found.changes[state] = Columns(output=output, row=row, slots=slots)
