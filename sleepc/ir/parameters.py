"""The parameters that a program's ports declare: their dtypes, their values, and which of them several ports share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch

from sleepc.ir.program import ProgramGraphs
from sleepc.ir.types import TensorType


def block_key(block: int, port: str) -> str:
    """The key of a parameter that the compiler has added to a block, for the port of that name."""
    return f"blocks.{block}.{port}"


def materialise(program: ProgramGraphs, device: str) -> dict[str, torch.Tensor]:
    """Every parameter by key, on `device`, in the dtype that its port declares. What needs no copy stays mapped."""
    return {key: program.params[key].materialise().to(device, dtype) for key, dtype in dtypes_of(program).items()}


def dtypes_of(program: ProgramGraphs) -> dict[str, torch.dtype]:
    """The dtypes that ports declare for parameters, by key."""
    dtypes: dict[str, torch.dtype] = {}
    for key, type_ in _ports(program):
        assert isinstance(type_, TensorType)
        dtypes[key] = type_.dtype
    return dtypes


def shared_keys(program: ProgramGraphs) -> frozenset[str]:
    """Parameters that several ports have: tied tables, blocks with the same weights."""
    counts = Counter(key for key, _ in _ports(program))
    return frozenset(key for key, count in counts.items() if count > 1)


def _ports(program: ProgramGraphs) -> Iterator[tuple[str, object]]:
    """(key, type) of every port that a parameter is given to, over all blocks; what encodes reads those of the blocks
    once more, which does not count, and some of its own.
    """
    if program.encode is not None:
        others = {key for block in program.layout for key in block.params.values()}
        for graph in (program.embed, program.head):
            others |= graph.ports("param").keys() | graph.ports("const").keys()
        for key, port in program.encode.step.ports("param").items():
            if key not in others:
                yield key, port.meta["type"]
    for graph in (program.embed, program.head):
        for key, port in {**graph.ports("param"), **graph.ports("const")}.items():
            yield key, port.meta["type"]
    for block in program.layout:
        ports = program.classes[block.cls].parameters()
        for name, key in block.params.items():
            yield key, ports[name].meta["type"]
