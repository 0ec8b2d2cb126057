"""What a block makes of its normalised input for attention, as matrices: found by evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from sleepc.ir.graph import Graph, is_call
from sleepc.ir.interp import Runner, widened
from sleepc.passes.analysis.find_sites import find_site
from sleepc.passes.lib.emit import aten

LINEAR = 1e-3  # relative error up to which a value counts as linear in x


def projections(wake: Graph, wanted: Sequence[str] = ("q", "k", "v")) -> Graph:
    """The part of a block's graph that makes q, k (before positions), v [B,H,T,D] of its normalised input, a port named
    x; those that are wanted.
    """
    part = wake.clone()
    site = find_site(part)
    port = part.add_port("input", "x", site.x.meta["type"])
    found: dict[str, fx.Node] = {"q": site.q, "k": site.k, "v": site.v}
    for user in list(site.x.users):
        user.replace_input_with(site.x, port)
    part.set_returns({name: port if found[name] is site.x else found[name] for name in wanted})
    part.drop_dead()
    return _without_unread(part)


def normalised_input(wake: Graph) -> Graph:
    """The part of a block's graph that makes x [B,T,hidden], what its projections read, of h."""
    part = wake.clone()
    part.set_returns({"x": find_site(part).x})
    part.drop_dead()
    return _without_unread(part)


@torch.no_grad()
def as_maps(
    part: Graph, bound: Mapping[str, Tensor], x_like: Tensor, dtype: torch.dtype | None = None
) -> dict[str, Tensor] | None:
    """W [H,D,hidden] of every result y = W x + c of `projections`, with the block's parameters `bound` by port; None if
    one is not linear in x alone. `x_like` [1,T,hidden]: some hidden states to try it on. With `dtype` everything is
    computed in that.
    """
    ports = part.ports()
    if any(name not in bound and name not in ("x", "h") for name in ports):
        return None
    kind = dtype or ports["x"].meta["type"].dtype
    own = {name: _cast(value, dtype) for name, value in bound.items() if name in ports}
    run, width = Runner(part), x_like.shape[2]

    unit = torch.cat([torch.zeros(1, width, dtype=kind), torch.eye(width, dtype=kind)])[None]

    def hook(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if is_call(node, aten.linear.default) and args[0] is unit:
            return _of_unit(*args[1:])
        return NotImplemented if dtype is None else widened(node, args, kwargs, dtype)

    def values(x: Tensor) -> dict[str, Tensor]:
        found = run({**own, "x": x, "h": x}, hook)  # of h only the size is left
        return {name: value[0] for name, value in found.items()}  # [H,T,D]

    units = values(unit)
    x = x_like.to(kind)
    maps = {}
    for name, wanted in values(x).items():
        base, columns = units[name][:, :1], units[name][:, 1:] - units[name][:, :1]
        if not (base + x[0] @ columns - wanted).abs().max() <= LINEAR * wanted.abs().max():
            return None
        maps[name] = columns.transpose(1, 2)
    return maps


def _of_unit(weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """What a linear map makes of zero and of the unit vectors: a product that nobody has to compute."""
    columns = torch.cat([weight.new_zeros(1, len(weight)), weight.T])[None]
    return columns if bias is None else columns + bias


def _without_unread(part: Graph) -> Graph:
    for node in list(part.ports().values()):
        if not node.users:
            part.fx.erase_node(node)
    return part


def _cast(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    return value if dtype is None or not value.dtype.is_floating_point else value.to(dtype)
