"""PyTorch's look-ups and scatters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import fx

from sleepc.backends.onnx.call import Call, aten, translates
from sleepc.errors import UsageError

Dims = Sequence["int | str"]
MOST_CHOICES = 64  # of numpy.choose, and so of onnx's ReferenceEvaluator


@translates(aten.gather.default)
def gather(c: Call) -> ir.Value:
    """x at indices along one dimension, of the indices' shape. If an index is that of a whole row, rows are copied."""
    axis, place = c.dim(1, len(c.out.dims)), _place_of_rows(c)
    if place is None:
        return elements(c, c.tensor(0), c.tensor(2), axis, (c.type(0).dims, c.type(2).dims))
    each = c.e("Reshape", c.value(place), c.e.shape([*place.meta["type"].dims[: axis + 1], 1]))
    return c.e("GatherND", c.tensor(0), c.e("Expand", each, c.e.shape([*c.out.dims[: axis + 1], 1])), batch_dims=axis)


def _place_of_rows(c: Call) -> fx.Node | None:
    """What the indices were expanded from, if they are the same for all of a row, and rows are copied to their end."""
    index, axis, x, out = c.node_at(2), c.dim(1, len(c.out.dims)), c.type(0).dims, c.out.dims
    if index.target is not aten.expand.default or x[:axis] != out[:axis] or x[axis + 1 :] != out[axis + 1 :]:
        return None
    place = index.args[0]
    assert isinstance(place, fx.Node)
    dims = place.meta["type"].dims
    of_rows = len(dims) == len(out) and dims[axis] == out[axis] and out[axis + 1 :] and set(dims[axis + 1 :]) == {1}
    return place if of_rows else None


@translates(aten.take_along_dim.default)
def take_along_dim(c: Call) -> ir.Value:
    """The same, dimensions of size 1 being repeated."""
    axis = int(c.option(2, "dim")) % len(c.out.dims)
    dims = list(c.out.dims)
    dims[axis] = c.type(0).dims[axis]
    x, at = c.e("Expand", c.tensor(0), c.e.shape(dims)), c.e("Expand", c.tensor(1), c.e.shape(c.out.dims))
    return elements(c, x, at, axis, (dims, c.out.dims))


def elements(c: Call, x: ir.Value, at: ir.Value, axis: int, dims: tuple[Dims, Dims]) -> ir.Value:
    """x at places [..] of one axis. `dims` are those of both.

    onnx's ReferenceEvaluator takes GatherElements from 63 elements and no more: in plain operators it is a GatherND,
    of the axis as the last.
    """
    (source, places), e = dims, c.e
    outer = [i for i in range(len(source)) if i != axis]
    few = isinstance(source[axis], int) and int(source[axis]) < MOST_CHOICES
    if c.style.ops != "portable" or few or any(source[i] != places[i] for i in outer):
        return e("GatherElements", x, at, axis=axis)
    order = [*outer, axis]
    back = [order.index(i) for i in range(len(order))]
    each = e("Unsqueeze", e.transpose(at, order), e.ints(-1))
    return e.transpose(e("GatherND", e.transpose(x, order), each, batch_dims=len(outer)), back)


@translates(aten.index_select.default)
def index_select(c: Call) -> ir.Value:
    """Places of one dimension."""
    return c.e("Gather", c.tensor(0), c.tensor(2), axis=int(c.raw(1)))


@translates(aten.scatter.src)
def scatter(c: Call) -> ir.Value:
    """x with values put at indices along one dimension, as many of them as there are indices."""
    return c.e("ScatterElements", c.tensor(0), c.tensor(2), _values(c, 3), axis=int(c.raw(1)))


def _values(c: Call, at: int) -> ir.Value:
    """The part of the values that has the shape of the indices; which is all, but for sizes that differ."""
    given, wanted, values = c.type(at).dims, c.type(2).dims, c.tensor(at, c.out.dtype)
    if given == wanted:
        return values
    return c.e("Slice", values, c.e.ints(*[0] * len(given)), c.e.shape(wanted))


@translates(aten.scatter.value)
def scatter_value(c: Call) -> ir.Value:
    """x with a number put at indices along one dimension."""
    values = c.e("Expand", c.tensor(3, c.out.dtype), c.e.shape(c.type(2).dims))
    return c.e("ScatterElements", c.tensor(0), c.tensor(2), values, axis=int(c.raw(1)))


@translates(aten.scatter_add.default)
def scatter_add(c: Call) -> ir.Value:
    """x with values added at indices along one dimension."""
    return c.e("ScatterElements", c.tensor(0), c.tensor(2), _values(c, 3), axis=int(c.raw(1)), reduction="add")


@translates(aten.one_hot.default)
def one_hot(c: Call) -> ir.Value:
    """A one at the place that every number says, in as many places as the result's type has."""
    places = c.e.ints(*range(int(c.out.dims[-1])))
    return c.e.cast(c.e("Equal", c.e("Unsqueeze", c.tensor(0), c.e.ints(-1)), places), torch.int64)


@translates(aten.index.Tensor)
def index(c: Call) -> ir.Value:
    """x at the places that tensors say, which name dimensions in a row."""
    places: Any = c.node.args[1]
    axes = [axis for axis, place in enumerate(places) if place is not None]
    in_a_row = axes == list(range(axes[0], axes[0] + len(axes)))
    if not in_a_row or any(places[axis].meta["type"].dtype == torch.bool for axis in axes):
        raise UsageError(
            "the ONNX backend indexes by integers, and in dimensions that follow each other, only",
            where=str(c.node.meta.get("source", "")),
            fix="Run this program with the eager backend.",
        )
    if len(axes) == 1:
        return c.e("Gather", c.tensor(0), c.value(places[axes[0]]), axis=axes[0])
    return _gathered(c, [places[axis] for axis in axes], axes[0])


def _gathered(c: Call, places: Sequence[Any], first: int) -> ir.Value:
    """x with its dimensions from `first` on replaced by what the indices have, together."""
    e, rank, count = c.e, len(c.type(0).dims), len(places)
    kept, left = list(range(first)), list(range(first + count, rank))
    # GatherND reads the first dimensions
    x = e.transpose(c.tensor(0), [*range(first, first + count), *kept, *left])
    width = len(c.out.dims) - (rank - count)
    shape = e.shape(c.out.dims[first : first + width])
    at = [e("Unsqueeze", e("Expand", e.cast(c.value(n), torch.int64), shape), e.ints(-1)) for n in places]
    found = e("GatherND", x, e("Concat", *at, axis=-1))
    return e.transpose(found, [*range(width, width + first), *range(width), *range(width + first, len(c.out.dims))])
