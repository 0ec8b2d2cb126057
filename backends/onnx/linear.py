"""Products: linear maps by weights of the model, which have a kernel for each precision, and all others."""

from __future__ import annotations

import onnx_ir as ir
import torch

from sleepc.backends.onnx.call import Call, Weight, aten, translates
from sleepc.backends.onnx.emit import MICROSOFT
from sleepc.backends.onnx.quantise import BLOCK
from sleepc.backends.onnx.weights import Form

INT8_PRODUCTS = 4  # accuracy_level: activations become int8 in blocks, as genai's exports have it


def _map(c: Call, x: ir.Value, key: str, sizes: tuple[int, int], *, flipped: bool = False) -> ir.Value:
    """x [.., in] times the weight `key` ([out, in], `flipped`: [in, out]) -> [.., out], in the precision asked for.

    What the conversion added (gates, maps of memories) stays in float32.
    """
    e, precision = c.e, c.style.precision
    if precision == "fp32" or e.weights.is_new(key):
        return e("MatMul", x, e.weight(key, "plain" if flipped else "transposed"))
    if precision == "fp16":
        half = e("MatMul", e.cast(x, torch.float16), e.weight(key, "half" if flipped else "half.transposed"))
        return e.cast(half, torch.float32)
    form: Form = f"{precision}.transposed" if flipped else precision  # type: ignore[assignment]
    scales: Form = f"{form}.scales"  # type: ignore[assignment]
    return e(
        "MatMulNBits",
        *(x, e.weight(key, form), e.weight(key, scales)),
        domain=MICROSOFT,
        K=sizes[1],
        N=sizes[0],
        bits=int(precision[3:]),
        block_size=BLOCK,
        accuracy_level=INT8_PRODUCTS,
    )


@translates(aten.linear.default)
def linear(c: Call) -> ir.Value:
    """x [.., in], weight [out, in], bias [out] -> [.., out]."""
    weight = c.raw(1)
    if isinstance(weight, Weight):
        out, width = c.type(1).dims
        product = _map(c, c.tensor(0), weight.key, (int(out), int(width)))
    else:
        product = c.e("MatMul", c.tensor(0), c.e.transpose(c.tensor(1), (1, 0)))
    return product if c.raw(2) is None else c.e("Add", product, c.tensor(2))


@translates(aten.addmm.default)
def addmm(c: Call) -> ir.Value:
    """bias + x [n, in] weight [in, out]."""
    weight = c.raw(2)
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
    rows: Form = f"{precision}.rows"  # type: ignore[assignment]
    scales: Form = f"{precision}.scales"  # type: ignore[assignment]
    return e(
        "GatherBlockQuantized",
        *(e.weight(table.key, rows), ids, e.weight(table.key, scales)),
        domain=MICROSOFT,
        bits=int(precision[3:]),
        block_size=BLOCK,
        gather_axis=0,
        quantize_axis=1,
    )
