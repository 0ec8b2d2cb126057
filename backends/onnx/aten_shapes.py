"""PyTorch's views and what makes tensors of given sizes. Targets come from the types of results, which are known."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import torch

from sleepc.backends.onnx.call import Call, aten, translates

END = 2**63 - 1


@translates(
    aten.reshape.default,
    aten.view.default,
    aten._unsafe_view.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
)
def reshape(c: Call) -> ir.Value:
    """x in the shape of the result."""
    return c.e.reshape(c.tensor(0), c.type(0).dims, c.out.dims)


@translates(aten.expand.default, aten.broadcast_to.default)
def expand(c: Call) -> ir.Value:
    """x repeated along dimensions of size 1."""
    before, after = c.type(0).dims, c.out.dims
    if before == after:
        return c.tensor(0)
    return c.e("Expand", c.tensor(0), c.e.shape(after))


@translates(aten.transpose.int, aten.t.default, aten.permute.default)
def transpose(c: Call) -> ir.Value:
    """x with its dimensions in another order."""
    rank = len(c.out.dims)
    order = list(range(rank))
    if c.node.target is aten.permute.default:
        order = [int(d) % rank for d in c.raw(1)]
    else:
        a, b = (c.dim(1, rank), c.dim(2, rank)) if c.node.target is aten.transpose.int else (0, rank - 1)
        order[a], order[b] = order[b], order[a]
    return c.e.transpose(c.tensor(0), order)


@translates(aten.cat.default, aten.concat.default)
def cat(c: Call) -> ir.Value:
    """Tensors in a row; one of shape [0] is nothing, whatever the others' rank is."""
    parts = []
    for node in c.nodes_at(0):
        type_ = node.meta["type"]
        if type_.dims == (0,) and len(c.out.dims) > 1:
            continue
        value = c.value(node)
        parts.append(value if type_.dtype == c.out.dtype else c.e.cast(value, c.out.dtype))
    return c.e("Concat", *parts, axis=int(c.option(1, "dim", 0)))


@translates(aten.stack.default)
def stack(c: Call) -> ir.Value:
    """Tensors in a row along a new dimension."""
    axis = int(c.option(1, "dim", 0)) % len(c.out.dims)
    parts = [c.e("Unsqueeze", c.value(n), c.e.ints(axis)) for n in c.nodes_at(0)]
    return c.e("Concat", *parts, axis=axis)


@translates(aten.slice.Tensor)
def slice_(c: Call) -> ir.Value:
    """Part of x along one dimension."""
    axis, start, end, step = (c.raw(i, d) for i, d in ((1, 0), (2, 0), (3, END), (4, 1)))
    bounds = (0 if start is None else start, END if end is None else end)
    if bounds[0] == 0 and bounds[1] >= END and step == 1:
        return c.tensor(0)
    return c.e("Slice", c.tensor(0), *(c.e.ints(int(n)) for n in (*bounds, axis, step)))


@translates(aten.select.int)
def select(c: Call) -> ir.Value:
    """One place of a dimension."""
    return c.e("Gather", c.tensor(0), c.e.const(int(c.raw(2)), torch.int64), axis=int(c.raw(1)))


def _split(c: Call, axis: int) -> Sequence[ir.Value]:
    """The parts that the results' types say."""
    sizes = [item.dims[axis] for item in c.node.meta["type"].items]
    if len(sizes) == 1:
        return [c.tensor(0)]
    return c.e.several("Split", len(sizes), c.tensor(0), c.e.ints(*sizes), axis=axis)


@translates(aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default)
def split(c: Call) -> Sequence[ir.Value]:
    """x in parts along one dimension."""
    return _split(c, int(c.option(2, "dim", 0)) % len(c.type(0).dims))


@translates(aten.repeat.default)
def repeat(c: Call) -> ir.Value:
    """x many times along dimensions."""
    times = [int(n) for n in c.raw(1)]
    before: list[int | str] = [*([1] * (len(times) - len(c.type(0).dims))), *c.type(0).dims]
    return c.e("Tile", c.e.reshape(c.tensor(0), c.type(0).dims, before), c.e.ints(*times))


@translates(aten.repeat_interleave.self_int)
def repeat_interleave(c: Call) -> ir.Value:
    """Every entry of one dimension many times in a row."""
    dims, times = list(c.type(0).dims), int(c.raw(1))
    axis = int(c.option(2, "dim")) % len(dims)
    x = c.e("Unsqueeze", c.tensor(0), c.e.ints(axis + 1))
    repeats = [1] * (len(dims) + 1)
    repeats[axis + 1] = times
    tiled = c.e("Tile", x, c.e.ints(*repeats))
    return c.e.reshape(tiled, [*dims[: axis + 1], times, *dims[axis + 1 :]], c.out.dims)


@translates(aten.arange.default, aten.arange.start)
def arange(c: Call) -> ir.Value:
    """0, 1, .. of the size that the result's type says."""
    size = c.e.size(c.out.dims[0])
    zero, one = (c.e.const(n, torch.int64) for n in (0, 1))
    limit = c.e.const(size, torch.int64) if isinstance(size, int) else c.e("Squeeze", size, c.e.ints(0))
    first = int(c.raw(0)) if c.node.target is aten.arange.start else 0
    found = c.e("Range", zero, limit, one)
    found = c.e("Add", found, c.e.const(first, torch.int64)) if first else found
    return found if c.out.dtype == torch.int64 else c.e.cast(found, c.out.dtype)


def _filled(c: Call, number: float | int | bool) -> ir.Value:
    return c.e("Expand", c.e.const(number, c.out.dtype), c.e.shape(c.out.dims))


@translates(aten.zeros_like.default, aten.zeros.default, aten.new_zeros.default)
def zeros(c: Call) -> ir.Value:
    """Zeros of the result's type."""
    return _filled(c, 0)


@translates(aten.ones_like.default, aten.ones.default, aten.new_ones.default)
def ones(c: Call) -> ir.Value:
    """Ones of the result's type."""
    return _filled(c, 1)


@translates(aten.full_like.default, aten.full.default)
def full(c: Call) -> ir.Value:
    """One number everywhere."""
    return _filled(c, c.raw(1))
