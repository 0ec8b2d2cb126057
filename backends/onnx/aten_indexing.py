"""PyTorch's look-ups and scatters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import torch

from sleepc.backends.onnx.call import Call, aten, translates
from sleepc.errors import UsageError


@translates(aten.gather.default)
def gather(c: Call) -> ir.Value:
    """x at indices along one dimension, of the indices' shape."""
    return c.e("GatherElements", c.tensor(0), c.tensor(2), axis=int(c.raw(1)))


@translates(aten.scatter.src)
def scatter(c: Call) -> ir.Value:
    """x with values put at indices along one dimension."""
    return c.e("ScatterElements", c.tensor(0), c.tensor(2), c.tensor(3), axis=int(c.raw(1)))


@translates(aten.index.Tensor)
def index(c: Call) -> ir.Value:
    """x at the places of one index tensor in one of its dimensions."""
    places: Any = c.node.args[1]
    axes = [axis for axis, place in enumerate(places) if place is not None]
    if len(axes) != 1 or places[axes[0]].meta["type"].dtype == torch.bool:
        raise UsageError(
            "the ONNX backend indexes by one tensor of integers only",
            where=str(c.node.meta.get("source", "")),
            fix="Run this program with the eager backend.",
        )
    return c.e("Gather", c.tensor(0), c.value(places[axes[0]]), axis=axes[0])


@translates(aten.topk.default)
def topk(c: Call) -> Sequence[ir.Value]:
    """The largest k entries of one dimension and where they are."""
    axis = int(c.option(2, "dim", -1))
    return c.e.several(
        "TopK", 2, c.tensor(0), c.e.ints(int(c.raw(1))), axis=axis, largest=int(c.option(3, "largest", True))
    )
