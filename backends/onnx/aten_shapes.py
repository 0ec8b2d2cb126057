"""PyTorch's views and what makes tensors of given sizes. Targets come from the types of results, which are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
import torch

from sleepc.backends.onnx.call import Call, aten, translates
from sleepc.backends.onnx.emit import SMALL
from sleepc.errors import UsageError

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
    aten.squeeze.default,
    aten.view_as.default,
    aten.reshape_as.default,
)
def reshape(c: Call) -> ir.Value:
    """x in the shape of the result."""
    return c.e.reshape(c.tensor(0), c.type(0).dims, c.out.dims)


@translates(aten.expand.default, aten.expand_as.default, aten.broadcast_to.default)
def expand(c: Call) -> ir.Value:
    """x repeated along dimensions of size 1."""
    before, after = c.type(0).dims, c.out.dims
    if before == after:
        return c.tensor(0)
    return c.e("Expand", c.tensor(0), c.e.shape(after))


@translates(aten.broadcast_tensors.default)
def broadcast(c: Call) -> Sequence[ir.Value]:
    """Tensors repeated to one shape."""
    shapes = [item.dims for item in c.node.meta["type"].items]
    return [c.e("Expand", c.value(n), c.e.shape(dims)) for n, dims in zip(c.nodes_at(0), shapes, strict=True)]


@translates(aten.transpose.int, aten.swapaxes.default, aten.t.default)
def transpose(c: Call) -> ir.Value:
    """x with two dimensions exchanged; those of a matrix if none are named."""
    rank = len(c.out.dims)
    order = list(range(rank))
    a, b = (0, rank - 1) if c.node.target is aten.t.default else (c.dim(1, rank), c.dim(2, rank))
    order[a], order[b] = order[b], order[a]
    return c.e.transpose(c.tensor(0), order)


@translates(aten.permute.default)
def permute(c: Call) -> ir.Value:
    """x with its dimensions in another order."""
    return c.e.transpose(c.tensor(0), [int(d) % len(c.out.dims) for d in c.raw(1)])


@translates(aten.movedim.int, aten.movedim.intlist)
def movedim(c: Call) -> ir.Value:
    """x with dimensions at other places."""
    rank = len(c.out.dims)
    moved, places = ([d % rank for d in ([c.raw(i)] if isinstance(c.raw(i), int) else c.raw(i))] for i in (1, 2))
    order = [d for d in range(rank) if d not in moved]
    for place, d in sorted(zip(places, moved, strict=True)):
        order.insert(place, d)
    return c.e.transpose(c.tensor(0), order)


@translates(aten.cat.default, aten.concat.default, aten.concatenate.default)
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
    start, end = 0 if _left_out(c, 2) else start, END if _left_out(c, 3) else end
    if start == 0 and step == 1 and not isinstance(end, str) and end >= END:
        return c.tensor(0)
    return _part(c, c.tensor(0), int(axis), start, end, int(step))


def _left_out(c: Call, at: int) -> bool:
    return len(c.node.args) <= at or c.node.args[at] is None


def _part(c: Call, x: ir.Value, axis: int, start: Any, end: Any, step: int = 1) -> ir.Value:
    return c.e("Slice", x, c.e.shape([start]), c.e.shape([end]), c.e.ints(axis), c.e.ints(step))


@translates(aten.narrow.default)
def narrow(c: Call) -> ir.Value:
    """Some entries of one dimension, from a place on."""
    axis, start = int(c.raw(1)), c.raw(2)
    length = c.out.dims[axis]
    at = c.e.shape([start])
    return c.e("Slice", c.tensor(0), at, c.e("Add", at, c.e.shape([length])), c.e.ints(axis))


@translates(aten.select.int)
def select(c: Call) -> ir.Value:
    """One place of a dimension."""
    place = c.e("Squeeze", c.e.shape([c.raw(2)]), c.e.ints(0))
    return c.e("Gather", c.tensor(0), place, axis=int(c.raw(1)))


@translates(aten.unbind.int)
def unbind(c: Call) -> Sequence[ir.Value]:
    """Every place of a dimension."""
    count = len(c.node.meta["type"].items)
    return [c.e("Gather", c.tensor(0), c.e.const(i, torch.int64), axis=int(c.raw(1, 0))) for i in range(count)]


@translates(aten.slice_scatter.default)
def slice_scatter(c: Call) -> ir.Value:
    """x, but part of one dimension is that of another tensor."""
    axis, start, end, step = (c.option(i, n, d) for i, n, d in SLICE)
    if step != 1:
        return _every(c, int(axis), slice(start, end, step))
    x, start = c.tensor(0), 0 if start is None else start
    parts = [] if start == 0 else [_part(c, x, int(axis), 0, start)]
    parts.append(c.tensor(1, c.out.dtype))
    if end is not None and (isinstance(end, str) or end < END):
        parts.append(_part(c, x, int(axis), end, END))
    return c.e("Concat", *parts, axis=int(axis))


def _every(c: Call, axis: int, places: slice) -> ir.Value:
    """x, but every n-th place of a dimension of known size is that of another tensor."""
    size, dims = c.out.dims[axis], [1] * len(c.out.dims)
    if isinstance(size, str) or isinstance(places.start, str) or isinstance(places.stop, str):
        where = str(c.node.meta.get("source", ""))
        raise UsageError("the ONNX backend writes into slices of step 1 only, where sizes are open", where=where)
    new, at = c.tensor(1, c.out.dtype), c.e.ints(*range(*places.indices(size)))
    dims[axis] = -1
    at = c.e("Expand", c.e("Reshape", at, c.e.ints(*dims)), c.e("Shape", new))
    return c.e("ScatterElements", c.tensor(0), at, new, axis=axis)


SLICE = ((2, "dim", 0), (3, "start", None), (4, "end", None), (5, "step", 1))


@translates(aten.select_scatter.default)
def select_scatter(c: Call) -> ir.Value:
    """x, but one place of a dimension is another tensor."""
    axis, place, x = int(c.raw(2)), int(c.raw(3)), c.tensor(0)
    new = c.e("Unsqueeze", c.tensor(1, c.out.dtype), c.e.ints(axis % len(c.out.dims)))
    after = [] if place == -1 else [_part(c, x, axis, place + 1, END)]
    return c.e("Concat", _part(c, x, axis, 0, place), new, *after, axis=axis)


@translates(aten.flip.default)
def flip(c: Call) -> ir.Value:
    """x backwards along dimensions."""
    axes = [int(d) for d in c.raw(1)]
    ends, steps = (c.e.ints(*[n] * len(axes)) for n in (-END, -1))
    return c.e("Slice", c.tensor(0), c.e.ints(*[-1] * len(axes)), ends, c.e.ints(*axes), steps)


@translates(aten.roll.default)
def roll(c: Call) -> ir.Value:
    """x shifted along dimensions, what falls off coming in at the front."""
    x, shifts, axes = c.tensor(0), c.raw(1), c.raw(2, ())
    if not axes:
        raise UsageError("the ONNX backend rolls named dimensions only", where=str(c.node.meta.get("source", "")))
    for shift, axis in zip(shifts, axes, strict=True):
        if int(shift):
            parts = (_part(c, x, int(axis), -int(shift), END), _part(c, x, int(axis), 0, -int(shift)))
            x = c.e("Concat", *parts, axis=int(axis))
    return x


@translates(aten.diff.default)
def diff(c: Call) -> ir.Value:
    """Differences of neighbours in one dimension."""
    x, axis = c.tensor(0), int(c.option(2, "dim", -1))
    if c.option(1, "n", 1) != 1 or c.option(3, "prepend") is not None or c.option(4, "append") is not None:
        raise UsageError("the ONNX backend takes first differences only", where=str(c.node.meta.get("source", "")))
    return c.e("Sub", _part(c, x, axis, 1, END), _part(c, x, axis, 0, -1))


def _triangle(upper: int) -> Callable[[Call], ir.Value]:
    def translate(c: Call) -> ir.Value:
        return c.e("Trilu", c.tensor(0), c.e.const(int(c.option(1, "diagonal", 0)), torch.int64), upper=upper)

    return translate


translates(aten.triu.default)(_triangle(1))
translates(aten.tril.default)(_triangle(0))


@translates(aten.constant_pad_nd.default, aten.pad.default)
def pad(c: Call) -> ir.Value:
    """x with one number before and after dimensions, the last first; negative widths cut off."""
    mode = c.option(2, "mode", "constant") if c.node.target is aten.pad.default else "constant"
    if mode != "constant":
        raise UsageError(f"the ONNX backend does not pad by {mode}", where=str(c.node.meta.get("source", "")))
    at = 3 if c.node.target is aten.pad.default else 2
    value, widths, rank = c.option(at, "value", 0), list(c.raw(1)), len(c.out.dims)
    before, after = [0] * rank, [0] * rank
    for i in range(len(widths) // 2):
        before[rank - 1 - i], after[rank - 1 - i] = widths[2 * i], widths[2 * i + 1]
    return c.e("Pad", c.tensor(0), c.e.shape([*before, *after]), c.e.const(value or 0, c.out.dtype))


def _split(c: Call, axis: int) -> Sequence[ir.Value]:
    """The parts that the results' types say."""
    sizes = [item.dims[axis] for item in c.node.meta["type"].items]
    if len(sizes) == 1:
        return [c.tensor(0)]
    return c.e.several("Split", len(sizes), c.tensor(0), c.e.shape(sizes), axis=axis)


@translates(aten.split.Tensor, aten.split.sizes, aten.split_with_sizes.default, aten.chunk.default)
def split(c: Call) -> Sequence[ir.Value]:
    """x in parts along one dimension."""
    return _split(c, int(c.option(2, "dim", 0)) % len(c.type(0).dims))


@translates(aten.repeat.default)
def repeat(c: Call) -> ir.Value:
    """x many times along dimensions."""
    times = list(c.raw(1))
    before: list[int | str] = [*([1] * (len(times) - len(c.type(0).dims))), *c.type(0).dims]
    return c.e("Tile", c.e.reshape(c.tensor(0), c.type(0).dims, before), c.e.shape(times))


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


def _range(c: Call, size: int | str) -> ir.Value:
    """0, 1, .. [size], int64; a constant if it is short: tract takes a Range for sizes, which it cannot sort."""
    count = c.e.size(size)
    if isinstance(count, int) and count <= SMALL:
        return c.e.ints(*range(count))
    zero, one = (c.e.const(n, torch.int64) for n in (0, 1))
    return c.e("Range", zero, c.e("Squeeze", c.e.shape([size]), c.e.ints(0)), one)


@translates(aten.arange.default, aten.arange.start, aten.arange.start_step)
def arange(c: Call) -> ir.Value:
    """Numbers from the first on, in equal steps, of the size that the result's type says."""
    e, dtype = c.e, c.out.dtype
    places = _range(c, c.out.dims[0])
    found = places if dtype == torch.int64 else e.cast(places, dtype)
    if c.node.target is aten.arange.start_step and c.raw(2, 1) != 1:
        found = e("Mul", found, c.tensor(2, dtype))
    if c.node.target is not aten.arange.default and c.raw(0) != 0:
        found = e("Add", found, c.tensor(0, dtype))
    return found


@translates(aten.eye.default, aten.eye.m)
def eye(c: Call) -> ir.Value:
    """Ones where row and column are the same."""
    rows, columns = (_range(c, dim) for dim in c.out.dims)
    return c.e.cast(c.e("Equal", c.e("Unsqueeze", rows, c.e.ints(1)), columns), c.out.dtype)


@translates(aten.linspace.default)
def linspace(c: Call) -> ir.Value:
    """Numbers from the first to the last, in equal steps."""
    first, last, size = float(c.raw(0)), float(c.raw(1)), int(c.out.dims[0])
    return c.e.const(torch.linspace(first, last, size, dtype=c.out.dtype).tolist(), c.out.dtype)


@translates(aten.scalar_tensor.default)
def scalar(c: Call) -> ir.Value:
    """A number."""
    return c.tensor(0, c.out.dtype)


@translates(aten.copy.default)
def copy(c: Call) -> ir.Value:
    """Another tensor in the shape and dtype of the first."""
    return c.e("Expand", c.tensor(1, c.out.dtype), c.e.shape(c.out.dims))


def _filled(c: Call, number: ir.Value) -> ir.Value:
    return c.e("Expand", number, c.e.shape(c.out.dims))


@translates(aten.zeros_like.default, aten.zeros.default, aten.new_zeros.default)
def zeros(c: Call) -> ir.Value:
    """Zeros of the result's type."""
    return _filled(c, c.e.const(0, c.out.dtype))


@translates(aten.ones_like.default, aten.ones.default, aten.new_ones.default)
def ones(c: Call) -> ir.Value:
    """Ones of the result's type."""
    return _filled(c, c.e.const(1, c.out.dtype))


@translates(aten.full_like.default, aten.full.default)
def full(c: Call) -> ir.Value:
    """One number everywhere."""
    return _filled(c, c.tensor(1, c.out.dtype))


@translates(aten.new_full.default)
def new_full(c: Call) -> ir.Value:
    """The same, in the dtype of a tensor."""
    return _filled(c, c.tensor(2, c.out.dtype))
