"""Runs stages: clones, checks, times and dumps; a pass does nothing but its rewrite."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from sleepc.errors import SleepcError
from sleepc.ir.check import check_graph
from sleepc.ir.fit import check_fit
from sleepc.ir.graph import Graph, graph_key
from sleepc.ir.levels import Level
from sleepc.ir.program import Block, BlockClass, Encode, Learn, Loop, ProgramGraphs
from sleepc.ir.text import print_graph
from sleepc.ir.weights import Param
from sleepc.passes.base import Pass, Stage
from sleepc.passes.effects import Trial
from sleepc.progress import Progress, silent


def run_stages(
    program: ProgramGraphs,
    stages: Sequence[Stage],
    *,
    progress: Progress = silent,
    dump: Path | None = None,
    tokens: Sequence[int] | None = None,
) -> ProgramGraphs:
    """A new program, `program` after `stages`. `progress` hears the name of each pass; `dump` gets the text after each.

    After every pass the structure is checked, after every stage all types are inferred anew and compared. With
    `tokens`, no more than a window has, the program is run on them after every pass, which must have kept its effect.
    Raises SleepcError (InvalidProgram, with the passes run so far in a note) if a pass needs what the program is not,
    or broke it.
    """
    program = program.clone()
    for step, each in enumerate(walk(program, stages, progress=progress, tokens=tokens), 1):
        if dump is not None:
            dump_program(program, dump / f"{step:02d}-{each.name}")
    return program


def walk(
    program: ProgramGraphs,
    stages: Sequence[Stage],
    *,
    progress: Progress = silent,
    tokens: Sequence[int] | None = None,
    full: bool = False,
) -> Iterator[Pass]:
    """Change `program` pass by pass, and yield each once it has run. See `run_stages`; with `full` all types are
    inferred anew after every pass.
    """
    trial = Trial(tokens, program) if tokens is not None else None
    for stage in stages:
        for i, each in enumerate(stage.passes, 1):
            progress(each.name, None)
            _run_pass(program, each, stage.level, trial, full=full)
            if i == len(stage.passes):
                program.level = stage.level
                check_program(program, full=True)
            yield each


def _run_pass(program: ProgramGraphs, each: Pass, level: Level, trial: Trial | None, *, full: bool) -> None:
    for fact in each.requires:
        if not fact.holds(program):
            raise SleepcError(f"{each.name} needs a program {fact.words}", where=f"level {program.level}")
    before = fingerprint(program)
    started = time.perf_counter()
    count = each.run(program)
    program.history.append(f"{each} {count} {time.perf_counter() - started:.2f}s")
    try:
        changed = fingerprint(program) != before
        if changed != (count > 0):
            raise SleepcError(
                f"the pass says {count} rewrites, but the program {'has' if changed else 'has not'} changed"
            )
        check_program(program, full=full, level=level)
        if trial is not None:
            trial.check(each, program)
    except SleepcError as error:
        error.add_note(f"after pass {each.name}; passes so far: {'; '.join(program.history)}")
        raise


def check_program(program: ProgramGraphs, *, full: bool, level: Level | None = None) -> None:
    """Check every graph with the operators of a level, the program's by default; `full` also infers every type anew
    (not at ATEN, whose types are torch's).
    """
    if program.level == "ATEN":
        return
    for graph in program.graphs():
        check_graph(graph, level or program.level, full=full)
    if full and program.level in ("STEP", "LOWERED"):
        check_fit(program)


def fingerprint(value: Any) -> object:
    """Every field of a program but its history, comparable; tensors count by identity."""
    if isinstance(value, Graph):
        return value.name, value.returns, graph_key(value)
    if isinstance(value, dict):
        return tuple((key, fingerprint(each)) for key, each in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(fingerprint(each) for each in value)
    if isinstance(value, (ProgramGraphs, BlockClass, Block, Loop, Learn, Encode)):
        return tuple(fingerprint(getattr(value, f.name)) for f in fields(value) if f.name != "history")
    return id(value) if isinstance(value, Param) else value


def dump_program(program: ProgramGraphs, folder: Path) -> None:
    """Write every graph as text into `folder`, one file a graph."""
    folder.mkdir(parents=True, exist_ok=True)
    for graph in program.graphs():
        try:
            text = print_graph(graph, program.level)
        except SleepcError:
            if program.level != "ATEN":
                raise
            text = str(graph.fx)  # a model may call what no program can: CheckOperators refuses it by name
        (folder / f"{graph.name}.txt").write_text(text)
