"""PyTorch's reductions, softmax and sorting, in plain ONNX operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
import torch

from sleepc.backends.onnx.call import Call, aten, translates


def _axes(c: Call, dim: Any) -> list[int]:
    """The dimensions that an argument names, counted from the front; all if it names none."""
    rank = len(c.type(0).dims)
    if dim is None or dim == []:
        return list(range(rank))
    return [int(d) % rank for d in ([dim] if isinstance(dim, int) else dim)]


def _reduced(c: Call, op: str, x: ir.Value, at: int = 1) -> ir.Value:
    """Argument `at` says over which dimensions, the one after whether they stay."""
    axes, keep = _axes(c, c.option(at, "dim")), c.option(at + 1, "keepdim", False)
    return c.e(op, x, c.e.ints(*axes), keepdims=int(bool(keep)))


def _reduction(op: str) -> Callable[[Call], ir.Value]:
    def translate(c: Call) -> ir.Value:
        return _reduced(c, op, c.tensor(0, c.out.dtype))

    return translate


for _op, _targets in {
    "ReduceMean": (aten.mean.dim, aten.mean.default),
    "ReduceSum": (aten.sum.dim_IntList, aten.sum.default),
    "ReduceMax": (aten.amax.default, aten.max.default),
    "ReduceMin": (aten.amin.default, aten.min.default),
    "ReduceProd": (aten.prod.default, aten.prod.dim_int),
    "ReduceLogSumExp": (aten.logsumexp.default,),
}.items():
    translates(*_targets)(_reduction(_op))


def _test(op: str) -> Callable[[Call], ir.Value]:
    def translate(c: Call) -> ir.Value:
        numbers = c.e.cast(c.tensor(0, torch.bool), torch.int32)
        return c.e.cast(_reduced(c, op, numbers), torch.bool)

    return translate


translates(aten.any.default, aten.any.dim)(_test("ReduceMax"))
translates(aten.all.default, aten.all.dim)(_test("ReduceMin"))


def _place(op: str) -> Callable[[Call], ir.Value]:
    """Where the largest or least entry is; among all if no dimension is named."""

    def translate(c: Call) -> ir.Value:
        dim, x = c.option(1, "dim"), c.tensor(0)
        if dim is None:
            return c.e(op, c.e("Reshape", x, c.e.ints(-1)), axis=0, keepdims=0)
        return c.e(op, x, axis=int(dim), keepdims=int(bool(c.option(2, "keepdim", False))))

    return translate


translates(aten.argmax.default)(_place("ArgMax"))
translates(aten.argmin.default)(_place("ArgMin"))


@translates(aten.max.dim, aten.min.dim)
def extreme(c: Call) -> Sequence[ir.Value]:
    """The largest or least entry of one dimension, and where it is."""
    most = c.node.target is aten.max.dim
    return [_reduced(c, "ReduceMax" if most else "ReduceMin", c.tensor(0)), _place("ArgMax" if most else "ArgMin")(c)]


@translates(aten.var.correction, aten.std.correction, aten.var.dim, aten.std.dim)
def variance(c: Call) -> ir.Value:
    """The mean square of what is left without the mean, over n - correction entries; or its root."""
    e, dtype, axes = c.e, c.out.dtype, _axes(c, c.option(1, "dim"))
    named = c.node.target in (aten.var.correction, aten.std.correction)
    less = c.raw("correction", 1) if named else int(c.option(2, "unbiased", True))
    less = 1 if less is None else less
    keep = int(bool(c.raw("keepdim", False) if named else c.option(3, "keepdim", False)))
    x = c.tensor(0)
    off = e("Sub", x, e("ReduceMean", x, e.ints(*axes), keepdims=1))
    total = e("ReduceSum", e("Mul", off, off), e.ints(*axes), keepdims=keep)
    count = e("ReduceProd", e.cast(e.shape([c.type(0).dims[axis] for axis in axes]), dtype), keepdims=0)
    found = e("Div", total, e("Sub", count, e.const(float(less), dtype)))
    return e("Sqrt", found) if c.node.target in (aten.std.correction, aten.std.dim) else found


@translates(aten.linalg_vector_norm.default, aten.norm.ScalarOpt_dim)
def norm(c: Call) -> ir.Value:
    """(sum |x|^p)^(1/p)."""
    order, x = c.option(1, "ord" if "linalg" in str(c.node.target) else "p", 2), c.tensor(0, c.out.dtype)
    order = 2 if order is None else order
    if order in (1, 2):
        return _reduced(c, f"ReduceL{int(order)}", x, 2)
    size = c.e("Abs", x)
    if abs(order) == float("inf"):
        return _reduced(c, "ReduceMax" if order > 0 else "ReduceMin", size, 2)
    total = _reduced(c, "ReduceSum", c.e("Pow", size, c.e.const(float(order), c.out.dtype)), 2)
    return c.e("Pow", total, c.e.const(1 / order, c.out.dtype))


@translates(aten.softmax.int, aten._softmax.default)
def softmax(c: Call) -> ir.Value:
    """Softmax over one dimension, in the dtype asked for."""
    return c.e("Softmax", c.tensor(0, c.out.dtype), axis=int(c.raw(1)))


@translates(aten.log_softmax.int, aten._log_softmax.default)
def log_softmax(c: Call) -> ir.Value:
    """Its logarithm."""
    return c.e("LogSoftmax", c.tensor(0, c.out.dtype), axis=int(c.raw(1)))


@translates(aten.cumsum.default)
def cumsum(c: Call) -> ir.Value:
    """Sums up to every entry of one dimension."""
    return c.e("CumSum", c.tensor(0, c.out.dtype), c.e.const(int(c.raw(1)), torch.int64))


@translates(aten.topk.default)
def topk(c: Call) -> Sequence[ir.Value]:
    """The largest k entries of one dimension and where they are."""
    axis = int(c.option(2, "dim", -1))
    return c.e.several(
        "TopK", 2, c.tensor(0), c.e.shape([c.raw(1)]), axis=axis, largest=int(c.option(3, "largest", True))
    )


def _sorted(c: Call, axis: int, descending: bool) -> Sequence[ir.Value]:
    """TopK of all entries: of equal ones the first comes first."""
    count = c.e.shape([c.type(0).dims[axis]])
    return c.e.several("TopK", 2, c.tensor(0), count, axis=axis, largest=int(descending))


@translates(aten.sort.default)
def sort(c: Call) -> Sequence[ir.Value]:
    """The entries of one dimension in order, and where they were."""
    return _sorted(c, int(c.option(1, "dim", -1)), bool(c.option(2, "descending", False)))


@translates(aten.sort.stable)
def sort_stable(c: Call) -> Sequence[ir.Value]:
    """The same, its options by name."""
    return _sorted(c, int(c.raw("dim", -1)), bool(c.raw("descending", False)))


@translates(aten.argsort.default)
def argsort(c: Call) -> ir.Value:
    """Where the entries were."""
    return sort(c)[1]


@translates(aten.argsort.stable)
def argsort_stable(c: Call) -> ir.Value:
    """The same, its options by name."""
    return sort_stable(c)[1]
