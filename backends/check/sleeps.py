"""The sleeps of a program that are compared: as often as it passes over its window, and otherwise."""

from __future__ import annotations

from dataclasses import replace

import torch

from sleepc.ir.program import ProgramGraphs
from sleepc.passes.analysis.sleeps import passes_of


def sleeps_of(program: ProgramGraphs, replays: bool) -> list[tuple[str, ProgramGraphs, int]]:
    """Sleeps to compare: what each is called, the program that makes it, and its passes.

    N passes, N + 1 if more have a meaning (it `replays`, or runs blocks again), and for a program that runs blocks
    again also the sleep without that: 0.
    """
    passes = passes_of(program)
    numbers = (passes, passes + 1) if replays or program.loop else (passes,)
    found = [(f"a sleep of {n} pass{'es' if n > 1 else ''}", with_passes(program, n), n) for n in numbers]
    if program.loop is not None:
        found.append(("a sleep that runs no block again", replace(program.clone(), loop=None), 0))
    return found


def with_passes(program: ProgramGraphs, passes: int) -> ProgramGraphs:
    """The program with another number of passes of its sleeps; itself if they make none."""
    program = program.clone()
    if program.loop is not None:
        program.loop = replace(program.loop, passes=passes)
        return program
    for cls in program.classes.values():
        for node in cls.sleep.calls() if cls.sleep else []:
            if node.target is torch.ops.sleepc.replay.default:
                node.kwargs = {**node.kwargs, "passes": passes}
    return program
