"""Several windows of pieces, block by block: what a block leaves of a window for later ones does not need what comes
out of it, so that all windows go through it at once, as rows of one batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    alone = program.loop is None and program.learn is None and program.encode is None
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
    given = _Given(readings, clocks, every)
    for i in range(len(steps.program.layout)):
        every["h"], changed = _through(steps, i, given, state)
        new.update(changed)
    found = every["h"].unflatten(0, (len(windows), -1)).transpose(0, 1).flatten(1, 2)
    return {"h": found}, new


@dataclass(frozen=True)
class _Given:
    """What blocks read: of each window, in its sleep, and of all windows as one batch; and the states of earlier blocks
    that later ones read, by full names: for each window what it finds, and what the sleep after it does.
    """

    readings: Sequence[Values]
    clocks: Sequence[Values]
    every: Values
    rings: dict[str, list[Tensor]] = field(default_factory=dict)


def _through(steps: TrainingSteps, i: int, given: _Given, state: Tensors) -> tuple[Tensor, Tensors]:
    """All windows through a block, h [W*B,L,d] -> (h', what is new of the state after the last one)."""
    names, rings = steps.program.state_names(i).values(), given.rings
    own = {name: state[name] for name in names if name not in rings}
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    for at, (values, h) in enumerate(zip(given.readings, given.every["h"].chunk(len(given.readings)), strict=True)):
        before = own | {name: rings[name][2 * at] for name in names if name in rings}
        own = own | steps.note_block(i, {**values, "h": h}, before)
        after = own | {name: rings[name][2 * at + 1] for name in names if name in rings}
        if at < len(given.clocks):
            own = own | steps.sleep_block(i, given.clocks[at], after)
        for name in names:
            found[name] += [before[name], after[name]]
    rings.update({name: found[name] for name in own if name in _read_later(steps.program, i)})
    stacked = {name: torch.cat(found[name][::2]) for name in names}
    return steps.read_block(i, given.every, stacked), own


def _read_later(program: ProgramGraphs, i: int) -> set[str]:
    """The states that later blocks read of block i."""
    readers = (at for at, block in enumerate(program.layout) if block.ring == i)
    return {name for at in readers for name in program.state_names(at).values()}


def _side_by_side(program: ProgramGraphs, readings: Sequence[Mapping[str, Any]]) -> Values:
    """What blocks read of each window as that of one batch, [W*B,..]; what has no rows is the same for all."""
    types = {name: node.meta["type"] for name, node in program.embed.results().items()}

    def joined(name: str, first: Any) -> Any:
        rows = isinstance(types[name], TensorType) and "B" in types[name].dims
        return torch.cat([values[name] for values in readings]) if rows else first

    return {name: joined(name, value) for name, value in readings[0].items()}
