"""Where a value of a block comes from, if blocks have only moved it since: through h, from block to block."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from sleepc.ir import dims
from sleepc.ir.graph import is_call
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.types import TensorType
from sleepc.passes.lib.emit import aten

EXAMPLE = {"B": 2, "T": 3}  # sizes by which places are compared
MOVES = (
    *(aten.slice.Tensor, aten.cat.default, aten.constant_pad_nd.default, aten.reshape.default, aten.unflatten.int),
    *(aten.flatten.using_ints, aten.permute.default, aten.transpose.int, aten.unsqueeze.default, aten.squeeze.dim),
)


@dataclass(frozen=True)
class Origin:
    """A value that a block makes, or embed (-1), and which of its numbers another value has, in order, of `EXAMPLE`."""

    block: int
    node: fx.Node
    numbers: tuple[int, ...]


def origin_of(program: ProgramGraphs, block: int, node: fx.Node) -> Origin:
    """Of a value of a block's wake graph. Values with one origin are the same, number by number."""
    at, moved = torch.arange(prod(_sizes(node))), True
    while moved:
        block, node = _giver(program, block, node)
        node, at, moved = _before(node, at)
    return Origin(block, node, tuple(at.tolist()))


def _giver(program: ProgramGraphs, block: int, node: fx.Node) -> tuple[int, fx.Node]:
    """For an input of a block what gives it: the block before, or embed."""
    if node.op != "placeholder" or node.meta["port"].kind != "input" or block < 0:
        return block, node
    name = node.meta["port"].name
    block = block - 1 if name == "h" else -1
    graph = program.embed if block < 0 else program.classes[program.layout[block].cls].wake
    return block, graph.results()[name]


def _before(node: fx.Node, at: Tensor) -> tuple[fx.Node, Tensor, bool]:
    """If all these numbers of a value were moved from one other value: that, which of its numbers they are, and True;
    else what is given, and False.
    """
    same = is_call(node, aten.to.dtype) and node.all_input_nodes[0].meta["type"] == node.meta["type"]
    if same or is_call(node, aten.clone.default):
        return node.all_input_nodes[0], at, True
    if not is_call(node, *MOVES):
        return node, at, False
    values: dict[fx.Node, Any] = {}
    starts: dict[fx.Node, int] = {}
    end = 0
    for source in node.all_input_nodes:
        if is_call(source, aten.sym_size.int):
            whose, dim = source.args
            values[source] = _sizes(whose)[dim]  # type: ignore[arg-type,index]
            continue
        sizes, starts[source] = _sizes(source), end
        end += prod(sizes)
        values[source] = torch.arange(starts[source], end).view(sizes)
    args: list[Any] = list(fx.map_arg(node.args, values.__getitem__))
    if is_call(node, aten.constant_pad_nd.default):
        args[2:] = [-1]
    taken: Tensor = node.target(*args, **node.kwargs).flatten()[at]  # type: ignore[operator]
    for source, start in starts.items():
        if len(taken) and start <= int(taken.min()) and int(taken.max()) < start + values[source].numel():
            return source, taken - start, True
    return node, at, False


def _sizes(node: fx.Node) -> list[int]:
    """A tensor's, of the example."""
    type_: TensorType = node.meta["type"]
    sizes = list(type_.dims)
    for name, size in EXAMPLE.items():
        sizes = [dims.substituted(dim, name, size) for dim in sizes]
    return [int(size) for size in sizes]
