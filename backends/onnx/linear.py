"""Products: linear maps by weights of the model, which have a kernel for each precision, and all others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir
import torch

from sleepc.backends.onnx.call import Call, aten, ours, translates
from sleepc.backends.onnx.emit import MICROSOFT, declare
from sleepc.backends.onnx.packed import few_bits
from sleepc.backends.onnx.quantise import BLOCK
from sleepc.backends.onnx.weights import Keys, Weight
from sleepc.errors import UsageError
from sleepc.ir.graph import is_call
from sleepc.ir.types import TensorType

# accuracy_level of MatMulNBits. Activations become int8 in blocks: half the time for one token, when the bytes of
# weights are what counts; products in float32 take 0.7 to 0.9 of that for 64 tokens (measured with AVX-512, int4).
INT8_PRODUCTS, FLOAT_PRODUCTS = 4, 1


def _map(c: Call, x: ir.Value, key: Keys, sizes: tuple[int, int], *, flipped: bool = False) -> ir.Value:
    """x [.., in] times the weight `key` ([out, in], `flipped`: [in, out]) -> [.., out], in the precision asked for.

    What the conversion added (gates, maps of memories) stays in float32.
    """
    e, form = c.e, c.e.weights.form(key, flipped=flipped, packed=c.style.reads_packed)
    if form == "plain":
        return e("MatMul", x, e.weight(key, "plain" if flipped else "transposed"))
    if form == "half":
        half = e("MatMul", e.cast(x, torch.float16), e.weight(key, "half" if flipped else "half.transposed"))
        return e.cast(half, torch.float32)
    weight = few_bits(e, key, f"{form}.transposed" if flipped and form != "packed" else form)
    in_floats = c.style.tokens == "many" or c.style.precision == "fp32"
    product = e(
        "MatMulNBits",
        *(x, weight.numbers, weight.scale),
        domain=MICROSOFT,
        K=sizes[1],
        N=sizes[0],
        bits=weight.bits,
        block_size=weight.group,
        accuracy_level=FLOAT_PRODUCTS if in_floats and weight.bits == 4 else INT8_PRODUCTS,
    )
    return product if weight.low is None else e("Add", product, _of_lows(c, x, weight.low, sizes[1] // weight.group))


def _of_lows(c: Call, x: ir.Value, low: ir.Value, groups: int) -> ir.Value:
    """x [.., in] times what all numbers of a group have in common, low [out, groups]: by sums of x over the groups."""
    e, before = c.e, c.type(1 if is_call(c.node, aten.addmm.default) else 0).dims
    cut = e.reshape(x, before, (*before[:-1], groups, int(before[-1]) // groups))
    sums = e("ReduceSum", cut, e.ints(-1), keepdims=0)
    with e.outermost():
        turned = e.transpose(low, (1, 0))
    return e("MatMul", sums, turned)


@translates(aten.linear.default)
def linear(c: Call) -> ir.Value:
    """x [.., in], weight [out, in], bias [out] -> [.., out]."""
    weight = c.raw(1)
    if isinstance(weight, Weight):
        out, width = c.type(1).dims
        product = _tied(c, weight.key) or _map(c, c.tensor(0), weight.key, (int(out), int(width)))
    else:
        product = c.e("MatMul", c.tensor(0), c.e.transpose(c.tensor(1), (1, 0)))
    return product if c.raw(2) is None else c.e("Add", product, c.tensor(2))


def _tied(c: Call, key: str) -> ir.Value | None:
    """The same by a weight that others read too, which so is in the file once, as they read it. Blocks of int4 and int8
    serve both anyway.
    """
    e, form = c.e, c.e.weights.form(key, packed=c.style.reads_packed)
    if key not in e.weights.shared or form not in ("plain", "half"):
        return None
    half = form == "half"
    x = e.cast(c.tensor(0), torch.float16) if half else c.tensor(0)
    rows = e("Reshape", x, e.ints(-1, int(c.type(1).dims[1])))
    product = e("Gemm", rows, e.weight(key, "half" if half else "plain"), transB=1)
    product = e.reshape(product, None, c.out.dims)
    return e.cast(product, torch.float32) if half else product


@translates(ours.linears.default)
def linears(c: Call) -> Sequence[ir.Value]:
    """Maps of one value as one product, which is split: by features, or by heads if these are wanted."""
    e, width, results = c.e, int(c.raw("width", 0)), c.node.meta["type"].items
    sizes = [int(node.meta["type"].dims[0]) for node in c.nodes_at(1)]
    whole, dims = _whole(c, sizes), c.type(0).dims[:-1]
    if width:
        heads = [size // width for size in sizes]
        split = e.reshape(whole, (*dims, sum(sizes)), (*dims, sum(heads), width))
        parts = e.several("Split", len(heads), e.transpose(split, (0, 2, 1, 3)), e.ints(*heads), axis=1)
    else:
        parts = e.several("Split", len(sizes), whole, e.ints(*sizes), axis=-1)
    for part, type_ in zip(parts, results, strict=True):
        declare(part, e.named(type_))
    return parts


def _whole(c: Call, sizes: Sequence[int]) -> ir.Value:
    """All maps in one, or in as many as are alike: [.., sum of outputs]."""
    size = {weight.key: size for weight, size in zip(c.raw(1), sizes, strict=True)}
    x: TensorType = c.type(0)
    runs = c.e.weights.alike(list(size), packed=c.style.reads_packed)
    products = [_map(c, c.tensor(0), keys, (sum(size[k] for k in keys), int(x.dims[-1]))) for keys in runs]
    product = products[0] if len(products) == 1 else c.e("Concat", *products, axis=-1)
    biases = c.raw(2) if len(c.node.args) > 2 else None
    whole = c.e("Add", product, c.e.weight(tuple(bias.key for bias in biases))) if biases else product
    if whole.shape is None:
        declare(whole, c.e.named(replace(x, dims=(*x.dims[:-1], sum(sizes)))))
    return whole


@translates(aten.addmm.default)
def addmm(c: Call) -> ir.Value:
    """bias + x [n, in] weight [in, out]. Raises UsageError for factors other than 1."""
    weight = c.raw(2)
    if c.raw("beta", 1) != 1 or c.raw("alpha", 1) != 1:
        raise UsageError("the ONNX backend adds products as they are", where="aten.addmm with beta or alpha")
    if isinstance(weight, Weight):
        width, out = c.type(2).dims
        product = _map(c, c.tensor(1), weight.key, (int(out), int(width)), flipped=True)
    else:
        product = c.e("MatMul", c.tensor(1), c.tensor(2))
    return c.e("Add", product, c.tensor(0))


@translates(aten.matmul.default, aten.bmm.default, aten.mm.default)
def matmul(c: Call) -> ir.Value:
    """A product of the last two dimensions."""
    return c.e("MatMul", c.tensor(0), c.tensor(1))


@translates(aten.embedding.default)
def embedding(c: Call) -> ir.Value:
    """Rows of a table; a table that is a linear map's weight too is in the file once."""
    e, table, ids = c.e, c.raw(0), c.tensor(1, torch.int64)
    form = e.weights.form(table.key) if isinstance(table, Weight) else "plain"
    whole_blocks = int(c.type(0).dims[1]) % BLOCK == 0
    if form == "plain" or not whole_blocks:
        return e("Gather", c.tensor(0), ids, axis=0)
    if form == "half":
        return e.cast(e("Gather", e.weight(table.key, "half"), ids, axis=0), torch.float32)
    weight = few_bits(e, table.key, form, rows=True)
    found = e(
        "GatherBlockQuantized",
        *(weight.numbers, ids, weight.scale),
        domain=MICROSOFT,
        bits=weight.bits,
        block_size=weight.group,
        gather_axis=0,
        quantize_axis=1,
    )
    if weight.low is None:
        return found
    dims = c.out.dims
    groups = e.reshape(found, dims, (*dims[:-1], int(dims[-1]) // weight.group, weight.group))
    lows = e("Unsqueeze", e("Gather", weight.low, ids, axis=0), e.ints(-1))
    return e.reshape(e("Add", groups, lows), None, dims)
