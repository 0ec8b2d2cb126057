"""Block classes: taking some layers' class apart from the others', and reading what embed hands on."""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from sleepc.ir.graph import Graph
from sleepc.ir.program import BlockClass, ProgramGraphs
from sleepc.ir.types import TensorType


def chosen_classes(program: ProgramGraphs, layers: tuple[int, ...]) -> list[str]:
    """Split classes so that each is chosen entirely or not at all, and return the chosen ones, in order."""
    chosen: list[str] = []
    for name in list(program.classes):
        members = [i for i, block in enumerate(program.layout) if block.cls == name]
        inside = [i for i in members if i in layers]
        if not inside:
            continue
        target = name
        if len(inside) < len(members):
            target = f"block.{len(program.classes)}"
            program.classes[target] = _copy(program.classes[name], target)
            for i in inside:
                program.layout[i] = replace(program.layout[i], cls=target)
        chosen.append(target)
    return chosen


def first_block(program: ProgramGraphs, name: str) -> int:
    """The first block of a class."""
    return next(i for i, block in enumerate(program.layout) if block.cls == name)


def _copy(cls: BlockClass, name: str) -> BlockClass:
    copy = cls.clone()
    for graph in copy.graphs():
        graph.name = name + graph.name.removeprefix(cls.wake.name)
    return copy


def type_of(graph: Graph, result: str) -> TensorType:
    """The type of a named result."""
    found = graph.results()[result].meta["type"]
    assert isinstance(found, TensorType)
    return found


def embed_port(program: ProgramGraphs, graph: Graph, name: str) -> fx.Node:
    """The block's input port for embed's result `name`, added if the block does not read it yet."""
    found: fx.Node | None = graph.ports().get(name)
    return found or graph.add_port("input", name, type_of(program.embed, name))
