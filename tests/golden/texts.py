"""Five tiny models, three ways to convert them, and their programs as text after every stage of passes/pipeline.py.

A text tells everything of a program but the values of weights: those of the constants that were captured are in it, and
those that the conversion chose, to four digits. A graph that a stage has left as it was is not written again.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import Any

import torch

from sleepc.capturing import capture_flat
from sleepc.ir.graph import Graph
from sleepc.ir.program import Block, BlockClass, Learn, Loop, ProgramGraphs
from sleepc.ir.states import StateSpec
from sleepc.ir.text import print_graph
from sleepc.ir.types import DTYPE_NAMES
from sleepc.ir.weights import Param
from sleepc.passes.pipeline import front_stages, lower_stages, rewrite_stages
from sleepc.passes.runner import run_stages
from sleepc.recipe import make_recipe
from tests.families import WINDOW, make_module

FOLDER = Path(__file__).parent
MODELS = ("llama", "gemma2", "gpt2", "gpt-oss", "llama4")
RECIPES: dict[str, dict[str, Any]] = {
    "parallel": {},
    "replace-recurrent": {"strategy": "replace", "consolidation": "recurrent", "passes": 2},
    "insert": {"strategy": "insert"},
}
TOKENS = (3, 1, 4, 1, 5, 9, 2, 6)[:WINDOW]
FEW = 8  # numbers that are written one by one


def written(model: str | None = None) -> dict[str, str]:
    """The texts that are kept, by their paths in FOLDER; of one model, if given."""
    found = sorted(FOLDER.glob(f"{model or '*'}/*.txt"))
    return {path.relative_to(FOLDER).as_posix(): path.read_text(encoding="utf-8") for path in found}


def made(model: str) -> dict[str, str]:
    """The texts of a model as this checkout makes them, by their paths in FOLDER: `model/stage.txt` after the stages
    that all recipes share, `model/recipe.stage.txt` after those of a recipe. Every pass is held to its effect.
    """
    module = make_module(model)
    program = capture_flat(module, values=module)
    texts = {}
    for stage in front_stages():
        before, program = program, run_stages(program, (stage,), tokens=TOKENS)
        texts[f"{model}/{stage.name}.txt"] = print_program(program, before)
    canonical = program
    for name, options in RECIPES.items():
        program = canonical
        stages = rewrite_stages(make_recipe({"window": WINDOW, "sinks": 2, **options}), len(canonical.layout))
        for stage in (*stages, *lower_stages()):
            before, program = program, run_stages(program, (stage,), tokens=TOKENS)
            texts[f"{model}/{name}.{stage.name}.txt"] = print_program(program, before)
    return texts


def differences(kept: dict[str, str], new: dict[str, str]) -> str:
    """Unified diffs of the texts that differ, each with the graph or the part of a program that its first line is in;
    empty where all are the same.
    """
    return "\n".join(
        _difference(path, kept.get(path, ""), new.get(path, ""))
        for path in sorted(kept.keys() | new.keys())
        if kept.get(path) != new.get(path)
    )


def _difference(path: str, kept: str, new: str) -> str:
    a, b = kept.splitlines(), new.splitlines()
    at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    heads = [line for line in b[: at + 1] if line and not line.startswith((" ", "}"))]
    place = heads[-1].removesuffix(" {") if heads else "nothing is made"
    return "\n".join([f"{path}, line {at + 1}, in: {place}", *difflib.unified_diff(a, b, "kept", "made", lineterm="")])


def print_program(program: ProgramGraphs, before: ProgramGraphs) -> str:
    """A program as text; graphs that `before` has just so are named only."""
    known = {graph.name: print_graph(graph, before.level) for graph in before.graphs() if graph.fx.nodes}
    lines = [*_facts(program), *_states(program), *_parameters(program), ""]
    for graph in program.graphs():
        if not graph.fx.nodes:
            continue  # a flat program has no head
        text = print_graph(graph, program.level)
        lines.append(f"graph {graph.name} as before" if known.get(graph.name) == text else text.rstrip())
        lines.append("")
    return "\n".join(lines)


def _facts(program: ProgramGraphs) -> Iterator[str]:
    """Whatever a program has that is neither graph, state nor parameter."""
    yield "program"
    for part in fields(program):
        value = getattr(program, part.name)
        if isinstance(value, Loop):
            yield from (f"  loop.{f.name}: {getattr(value, f.name)}" for f in fields(value) if f.name != "given")
        elif isinstance(value, Learn):
            yield from (f"  learn.{f.name}: {getattr(value, f.name)}" for f in fields(value) if f.name != "step")
        elif part.name not in ("learn", "encode") and (
            value is None or isinstance(value, (int, float, str, torch.dtype))
        ):
            yield f"  {part.name}: {value}"
    for name, cls in program.classes.items():
        yield f"  class {name}: {', '.join(graph.name for graph in cls.graphs())}{_rest(cls)}"


def _rest(cls: BlockClass) -> str:
    """What a class has in addition to graphs and states."""
    rest = {f.name: getattr(cls, f.name) for f in fields(cls) if f.name != "states"}
    return "".join(f", {name}: {value}" for name, value in rest.items() if not isinstance(value, (Graph, NoneType)))


def _states(program: ProgramGraphs) -> Iterator[str]:
    specs = [("", spec) for spec in program.states]
    specs += [(f"{name}/", spec) for name, cls in program.classes.items() for spec in cls.states]
    if specs:
        yield "states"
    for owner, spec in specs:
        yield f"  {owner}{spec.name}: {spec.type()}{_meaning(spec)}"


def _meaning(spec: StateSpec) -> str:
    known = ("dims", "dtype", "block")
    return "".join(f", {f.name} {getattr(spec, f.name)}" for f in fields(spec) if f.name not in known)


def _parameters(program: ProgramGraphs) -> Iterator[str]:
    """Every port of the whole and of each block, with its parameter."""
    left = dict.fromkeys(program.params)
    yield "parameters of embed and head"
    for graph in (program.embed, program.head):
        for kind in ("param", "const"):
            for key in graph.ports(kind):
                left.pop(key, None)
                yield f"  {graph.name}/{key}: {_value(program.params[key], kind)}"
    for i, block in enumerate(program.layout):
        yield f"block {i}: {block.cls}" + ("" if block.ring is None else f", ring {block.ring}")
        kinds = _kinds(program, block)
        for port, key in block.params.items():
            left.pop(key, None)
            yield f"  {port} = {key}: {_value(program.params[key], kinds.get(port, 'unread'))}"
    if left:
        yield "parameters that no port has"
        yield from (f"  {key}: {_value(program.params[key], 'unread')}" for key in left)


def _kinds(program: ProgramGraphs, block: Block) -> dict[str, str]:
    """Of each port of a block that is a parameter: is it a weight or a constant?"""
    graphs = program.classes[block.cls].graphs()
    return {port: kind for kind in ("param", "const") for graph in graphs for port in graph.ports(kind)}


def _value(param: Param, kind: str) -> str:
    shape = f"{DTYPE_NAMES[param.dtype]}[{','.join(str(size) for size in param.shape)}]"
    if kind == "param" and not param.new:
        return f"{shape} {kind}"
    value = param.materialise().double()
    if bool((value == value.flatten()[0]).all()):
        told = f"all {_number(value.flatten()[0])}"
    elif value.numel() <= FEW:
        told = " ".join(_number(x) for x in value.flatten())
    elif param.new:
        return f"{shape} new {kind}"  # drawn by chance, or made of weights
    else:
        told = hashlib.sha256(" ".join(_number(x) for x in value.flatten()).encode()).hexdigest()[:16]
    return f"{shape} {'new ' if param.new else ''}{kind}, {told}"


def _number(x: torch.Tensor) -> str:
    """To four digits: the next depend on the machine's kernels."""
    return f"{float(x):.4g}"
