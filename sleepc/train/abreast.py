"""Several windows of pieces, block by block: what a block leaves of a window for later ones does not need what comes
out of it, so that all windows go through it at once, as rows of one batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sleepc.backends.training_steps import Tensors, TrainingSteps, Values
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.types import TensorType

Windows = Sequence[tuple[Tensor, Tensor]]
"""Tokens [B,L] of each window, and lengths [B]: how many of them are real."""


def can_be_abreast(program: ProgramGraphs) -> bool:
    """Does a sleep of a block read that block alone, the head h alone, and has all else of a window its rows first?"""
    types = [node.meta["type"] for node in program.embed.results().values()]
    rows_first = all("B" not in type_.dims[1:] for type_ in types if isinstance(type_, TensorType))
    alone = program.loop is None and program.learn is None
    return alone and set(program.head.ports("input")) == {"h"} and rows_first


def read_abreast(steps: TrainingSteps, state: Tensors, windows: Windows, *, last: bool) -> tuple[Values, Tensors]:
    """W whole windows, with a sleep after each, but for the last one if pieces end there (`last`) -> (what the head
    reads, h [B,W*L,d], state').
    """
    readings, clocks, new = [], [], state
    for i, (tokens, lengths) in enumerate(windows):
        values, new = steps.begin(new, tokens, lengths)
        readings.append(values)
        if not (last and i == len(windows) - 1):
            clock, new = steps.begin_sleep(new)
            clocks.append(clock)
    every, new = _side_by_side(steps.program, readings), dict(new)
    for i in range(len(steps.program.layout)):
        every["h"], changed = _through(steps, i, readings, clocks, every, state)
        new.update(changed)
    found = every["h"].unflatten(0, (len(windows), -1)).transpose(0, 1).flatten(1, 2)
    return {"h": found}, new


def _through(
    steps: TrainingSteps,
    i: int,
    readings: Sequence[Values],
    clocks: Sequence[Values],
    every: Values,
    state: Tensors,
) -> tuple[Tensor, Tensors]:
    """All windows through a block, h [W*B,L,d] -> (h', what is new of the state after the last one)."""
    names = [f"{i}.{spec.name}" for spec in steps.program.classes[steps.program.layout[i].cls].states]
    found = [{name: state[name] for name in names}]  # what each window finds, and what is left after the last one
    for at, (values, h) in enumerate(zip(readings, every["h"].chunk(len(readings)), strict=True)):
        found.append({**found[-1], **steps.note_block(i, {**values, "h": h}, found[-1])})
        if at < len(clocks):
            found[-1] |= steps.sleep_block(i, clocks[at], found[-1])
    *before, after = found
    stacked = {name: torch.cat([each[name] for each in before]) for name in names}
    return steps.read_block(i, every, stacked), after


def _side_by_side(program: ProgramGraphs, readings: Sequence[Mapping[str, Any]]) -> Values:
    """What blocks read of each window as that of one batch, [W*B,..]; what has no rows is the same for all."""
    types = {name: node.meta["type"] for name, node in program.embed.results().items()}

    def joined(name: str, first: Any) -> Any:
        rows = isinstance(types[name], TensorType) and "B" in types[name].dims
        return torch.cat([values[name] for values in readings]) if rows else first

    return {name: joined(name, value) for name, value in readings[0].items()}
