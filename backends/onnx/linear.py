"""Products: linear maps with weights of the model, which have a form for each precision, and all others."""

from __future__ import annotations

import onnx_ir as ir

from sleepc.backends.onnx.call import Call, Weight, aten, translates


@translates(aten.linear.default)
def linear(c: Call) -> ir.Value:
    """x [.., in], weight [out, in], bias [out] -> [.., out]."""
    weight = c.raw(1)
    if isinstance(weight, Weight):
        product = c.e("MatMul", c.tensor(0), c.e.weight(weight.key, "transposed"))
    else:
        product = c.e("MatMul", c.tensor(0), c.e.transpose(c.tensor(1), (1, 0)))
    return product if c.raw(2) is None else c.e("Add", product, c.tensor(2))


@translates(aten.addmm.default)
def addmm(c: Call) -> ir.Value:
    """bias + x [n, in] weight [in, out]."""
    return c.e("Add", c.e("MatMul", c.tensor(1), c.tensor(2)), c.tensor(0))


@translates(aten.matmul.default, aten.bmm.default, aten.mm.default)
def matmul(c: Call) -> ir.Value:
    """A product of the last two dimensions."""
    return c.e("MatMul", c.tensor(0), c.tensor(1))
