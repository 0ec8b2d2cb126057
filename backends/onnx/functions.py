"""What ONNX Runtime's own operators mean, in plain ones: a runtime without their kernels inlines these bodies.

A body cannot ask which optional inputs a node has, so there is one for each kind of node, told apart by the nodes'
`overload`. ONNX Runtime looks for a kernel first, and takes no notice of it.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx import parser

from sleepc.backends.onnx.emit import MICROSOFT

RECURRENCE = """
<domain: "com.microsoft", overload: "{rule}", opset_import: ["" : 23]>
LinearAttention <q_num_heads, kv_num_heads, update_rule, scale> ({inputs}) => (output, present) {{
    heads_ = Constant <value_int: int = @kv_num_heads> ()
    one = Constant <value_ints = [1]> ()
    heads = Reshape (heads_, one)
    same = Constant <value_ints = [0, 0]> ()
    rest = Constant <value_ints = [-1]> ()
    split = Concat <axis = 0> (same, heads, rest)
    k = Reshape (key, split)
    v = Reshape (value, split)
    dk = Shape <start = 3, end = 4> (k)
    grouped = Concat <axis = 0> (same, heads, rest, dk)
    q = Reshape (query, grouped)
    {prepare}
    present, reads = Scan <body = step (float[B,H,K,V] S, float[B,H,G,K] qt, float[B,H,K] kt, float[B,H,V] vt{types})
        => (float[B,H,K,V] S_new, float[B,H,G,V] read) {{
        column = Constant <value_ints = [3]> ()
        row = Constant <value_ints = [2]> ()
        kc = Unsqueeze (kt, column)
        kr = Unsqueeze (kt, row)
        vr = Unsqueeze (vt, row)
        {decay}
        {correct}
        added = Mul (kc, written)
        S_new = Add (S_kept, added)
        read = MatMul (qt, S_new)
    }}, num_scan_inputs = {count}, scan_input_axes = [{axes}], scan_output_axes = [1]> (past, q, k, v{scanned})
    scale_ = Constant <value_float: float = @scale> ()
    zero = Constant <value_float = 0.0> ()
    unset = Equal (scale_, zero)
    width = CastLike (dk, past)
    root = Sqrt (width)
    usual = Reciprocal (root)
    factor = Where (unset, usual, scale_)
    scaled = Mul (reads, factor)
    flat = Constant <value_ints = [0, 0, -1]> ()
    output = Reshape (scaled, flat)
}}
"""
CONVOLUTION = """
<domain: "com.microsoft", overload: "{activation}", opset_import: ["" : 23]>
CausalConvWithState <activation> (input, weight, bias, past) => (output, present) {{
    columns = Concat <axis = 2> (past, input)
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    first = Constant <value_ints = [0]> ()
    second = Constant <value_ints = [1]> ()
    third = Constant <value_ints = [2]> ()
    last = Constant <value_ints = [-1]> ()
    T = Shape <start = 2, end = 3> (input)
    T_ = Squeeze (T, first)
    K = Shape <start = 2, end = 3> (weight)
    K_ = Squeeze (K, first)
    tokens_ = Range (zero, T_, one)
    tokens = Unsqueeze (tokens_, second)
    taps = Range (zero, K_, one)
    at = Add (tokens, taps)
    seen = Gather <axis = 2> (columns, at)
    products = Mul (seen, weight)
    {sum} = ReduceSum <keepdims = 0> (products, last)
    {activate}
    far = Constant <value_ints = [9223372036854775807]> ()
    present = Slice (columns, T, far, third)
}}
"""


def attach(model: ir.Model) -> None:
    """Give the model bodies for those of its nodes, in Loops too, that a runtime may have no kernel for."""
    for node in model.graph.all_nodes():
        text = body(node)
        if text is None:
            continue
        function = ir.from_proto(parser.parse_function(text))
        assert isinstance(function, ir.Function)
        node.overload = function.overload
        model.functions[function.identifier()] = function


def body(node: ir.Node) -> str | None:
    """The function that a node calls, as text; None for an operator that needs none."""
    if node.domain != MICROSOFT:
        return None
    if node.op_type == "LinearAttention":
        given = [*node.inputs, None, None]
        return recurrence(node.attributes["update_rule"].as_string(), given[4] is not None, given[5] is not None)
    if node.op_type == "CausalConvWithState":
        assert node.inputs[2] is None, "no convolution has a bias"
        activation = node.attributes.get("activation")
        return convolution("none" if activation is None else activation.as_string())
    return None


def recurrence(rule: str, decays: bool, corrects: bool) -> str:
    """S <- e^g S; S <- S + k (beta (v - S^T k)); o = scale S^T q, for all tokens of query [B, T, Hq*dk], key, value,
    with a decay per head or per channel.
    """
    assert (decays, corrects) == ("gated" in rule, "delta" in rule), rule
    prepare, types, scanned = [], "", ""
    decay, correct = "S_kept = Identity (S)", "written = Identity (vr)"
    if decays:
        prepare += ["g = Reshape (decay, split)"]
        types, scanned = types + ", float[B,H,D] gt", scanned + ", g"
        decay = "share = Exp (gt)\nfactors = Unsqueeze (share, column)\nS_kept = Mul (S, factors)"
    if corrects:
        prepare += ["beta_at = Constant <value_ints = [3]> ()", "b = Unsqueeze (beta, beta_at)"]
        types, scanned = types + ", float[B,H1,I] bt", scanned + ", b"
        correct = (
            "known = MatMul (kr, S_kept)\nmissing = Sub (vr, known)\n"
            "strength = Unsqueeze (bt, row)\nwritten = Mul (strength, missing)"
        )
    count = 3 + decays + corrects
    return RECURRENCE.format(
        rule=rule,
        inputs=", ".join(("query", "key", "value", "past", "decay", "beta")[: 6 if corrects else 4 + decays]),
        prepare="\n".join(prepare),
        types=types,
        decay=decay,
        correct=correct,
        count=count,
        axes=", ".join("1" * count),
        scanned=scanned,
    )


def convolution(activation: str) -> str:
    """Depthwise and causal, of input [B, C, T] with the K-1 columns before it; the last K-1 columns are kept."""
    if activation == "none":
        return CONVOLUTION.format(activation=activation, sum="output", activate="")
    assert activation in ("silu", "swish"), activation
    bend = "gate = Sigmoid (sum)\noutput = Mul (sum, gate)"
    return CONVOLUTION.format(activation=activation, sum="sum", activate=bend)
