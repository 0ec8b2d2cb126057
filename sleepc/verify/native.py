"""What the norm in front of a native layer adds to its squares, found from what the layer makes of constant inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from sleepc.ir.graph import Graph
from sleepc.ir.interp import run, widened
from sleepc.passes.analysis.projections import normalised_input

SMALL, LARGE = 1e-3, 1e9  # hidden states: epsilon counts in the first, and not in the second


@torch.no_grad()
def epsilon_before(wake: Graph, bound: Mapping[str, Tensor]) -> float:
    """x(t) = w t / sqrt(t² + epsilon) for hidden states that are all t, so epsilon = t² ((w / x(t))² - 1).

    wake: the original block, `bound` its parameters by port.
    """
    part = normalised_input(wake)
    ports = part.ports()
    own = {name: value.double() for name, value in bound.items() if name in ports and value.dtype.is_floating_point}
    width = ports["h"].meta["type"].dims[2]

    def hook(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return widened(node, args, kwargs, torch.float64)

    def x(t: float) -> Tensor:
        found: Tensor = run(part, {**own, "h": torch.full((1, 1, width), t, dtype=torch.float64)}, hook)["x"]
        return found.flatten()

    small, large = x(SMALL), x(LARGE)
    at = int(large.abs().argmax())
    return float(SMALL**2 * ((large[at] / small[at]) ** 2 - 1))
