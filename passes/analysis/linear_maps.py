"""Linear maps of a block: calls that multiply a value by a matrix of parameters."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any, NamedTuple

from torch import fx

from sleepc.ir.graph import Graph, is_call
from sleepc.ir.types import TensorType
from sleepc.passes.lib.emit import aten


class LinearMap(NamedTuple):
    """y [.., out] = x [.., in] Wᵀ, perhaps with a bias. `flipped`: the parameter is Wᵀ, [in, out]."""

    call: fx.Node
    x: fx.Node
    flipped: bool


def all_maps(graph: Graph) -> dict[fx.Node, LinearMap]:
    """The linear maps of a block, by their calls."""
    return {one.call: one for port in graph.ports("param").values() for one in linear_maps(port)}


def maps_before(nodes: Iterable[fx.Node], maps: Collection[fx.Node]) -> set[fx.Node]:
    """Those of these maps whose results the nodes are made of, by other operators alone."""
    stack, seen, found = list(nodes), set[fx.Node](), set[fx.Node]()
    while stack:
        node = stack.pop()
        if node in maps:
            found.add(node)
        elif node not in seen:
            seen.add(node)
            stack += node.all_input_nodes
    return found


def linear_maps(port: fx.Node) -> list[LinearMap]:
    """Every use of a parameter port [out, in] or [in, out] as a linear map.

    Empty if something else reads it too: then there is more to it than a map.
    """
    type_ = port.meta["type"]
    if not isinstance(type_, TensorType) or len(type_.dims) != 2 or not type_.dtype.is_floating_point:
        return []
    found = list(_uses(port, flipped=False))
    return [] if None in found else [use for use in found if use is not None]


def _uses(value: fx.Node, *, flipped: bool) -> Iterator[LinearMap | None]:
    """The uses of a matrix, W or (`flipped`) Wᵀ of the port; None for one that is not used as a linear map."""
    for user in value.users:
        args: tuple[Any, ...] = user.args
        at = [i for i, arg in enumerate(args) if arg is value]
        if is_call(user, aten.t.default) or (is_call(user, aten.transpose.int) and (args[1] - args[2]) % 2):
            yield from _uses(user, flipped=not flipped)
        elif is_call(user, aten.linear.default) and at == [1]:
            yield LinearMap(user, args[0], flipped)
        elif is_call(user, aten.matmul.default, aten.mm.default) and at == [1]:
            yield LinearMap(user, args[0], not flipped)
        elif is_call(user, aten.addmm.default) and at == [2] and not user.kwargs:
            yield LinearMap(user, args[1], not flipped)
        else:
            yield None
