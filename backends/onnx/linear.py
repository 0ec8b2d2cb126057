"""Products: linear maps by weights of the model, which have a kernel for each precision, and all others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir
import torch

from sleepc.backends.onnx.call import Call, aten, ours, translates
from sleepc.backends.onnx.emit import MICROSOFT, declare
from sleepc.backends.onnx.quantise import BLOCK
from sleepc.backends.onnx.weights import Form, Keys, Weight
from sleepc.errors import UsageError
from sleepc.ir.types import TensorType

# accuracy_level of MatMulNBits. Activations become int8 in blocks: half the time for one token, when the bytes of
# weights are what counts; products in float32 take 0.7 to 0.9 of that for 64 tokens (measured with AVX-512, int4).
INT8_PRODUCTS, FLOAT_PRODUCTS = 4, 1


def _map(c: Call, x: ir.Value, key: Keys, sizes: tuple[int, int], *, flipped: bool = False) -> ir.Value:
    """x [.., in] times the weight `key` ([out, in], `flipped`: [in, out]) -> [.., out], in the precision asked for.

    What the conversion added (gates, maps of memories) stays in float32.
    """
    e, precision = c.e, c.style.precision
    if precision == "fp32" or e.weights.is_new(key if isinstance(key, str) else key[0]):
        return e("MatMul", x, e.weight(key, "plain" if flipped else "transposed"))
    if precision == "fp16":
        half = e("MatMul", e.cast(x, torch.float16), e.weight(key, "half" if flipped else "half.transposed"))
        return e.cast(half, torch.float32)
    form: Form = f"{precision}.transposed" if flipped else precision
    scales: Form = f"{form}.scales"
    return e(
        "MatMulNBits",
        *(x, e.weight(key, form), e.weight(key, scales)),
        domain=MICROSOFT,
        K=sizes[1],
        N=sizes[0],
        bits=int(precision[3:]),
        block_size=BLOCK,
        accuracy_level=FLOAT_PRODUCTS if c.style.tokens == "many" else INT8_PRODUCTS,
    )


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
    e, precision = c.e, c.style.precision
    if key not in e.weights.shared or precision in ("int8", "int4"):
        return None
    half = precision == "fp16" and not e.weights.is_new(key)
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
    """All maps in one: [.., sum of outputs]."""
    keys = tuple(weight.key for weight in c.raw(1))
    x: TensorType = c.type(0)
    product = _map(c, c.tensor(0), keys, (sum(sizes), int(x.dims[-1])))
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
    e, precision, table, ids = c.e, c.style.precision, c.raw(0), c.tensor(1, torch.int64)
    whole_blocks = int(c.type(0).dims[1]) % BLOCK == 0
    if precision == "fp32" or not isinstance(table, Weight) or not whole_blocks:
        return e("Gather", c.tensor(0), ids, axis=0)
    if precision == "fp16":
        return e.cast(e("Gather", e.weight(table.key, "half"), ids, axis=0), torch.float32)
    rows: Form = f"{precision}.rows"
    scales: Form = f"{precision}.scales"
    return e(
        "GatherBlockQuantized",
        *(e.weight(table.key, rows), ids, e.weight(table.key, scales)),
        domain=MICROSOFT,
        bits=int(precision[3:]),
        block_size=BLOCK,
        gather_axis=0,
        quantize_axis=1,
    )
