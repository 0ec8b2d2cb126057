"""Fast-weight memories: short convolution, update and read, read alone, consolidation by replay.

The recurrence is `com.microsoft::LinearAttention` where ONNX Runtime has it, else a `Scan` over tokens: never unrolled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch

from sleepc.backends.onnx.call import Call, Style, ours, translates
from sleepc.backends.onnx.control import repeat
from sleepc.backends.onnx.emit import MICROSOFT, Emitter
from sleepc.errors import UsageError
from sleepc.ir.dims import scaled
from sleepc.ops.rules import Rule, find

RULES = ("linear", "gated", "delta", "gated_delta")


@dataclass(frozen=True)
class Tokens:
    """What tokens write, heads first: k [B, H, T, dk], v [B, H, T, dv], g [B, H, T] or [B, H, T, dk] or None (no
    decay), beta [B, H, T]; and the sizes.
    """

    k: ir.Value
    v: ir.Value
    g: ir.Value | None
    beta: ir.Value
    rows: int | str
    heads: int
    count: int | str
    dk: int
    dv: int
    per_channel: bool


def _tokens(c: Call, first: int, rule: Rule, dtype: torch.dtype) -> Tokens:
    """k, v, g, beta as arguments `first` .. of a call, in the state's dtype."""
    k, v, g, beta = (c.tensor(first + i, dtype) for i in range(4))
    (rows, heads, count, dk), dv = c.type(first).dims, c.type(first + 1).dims[3]
    per_channel = len(c.type(first + 2).dims) == 4
    return Tokens(
        k, v, g if rule.decays else None, beta, rows, int(heads), count, int(dk), int(dv), per_channel and rule.decays
    )


def _rule(c: Call) -> Rule:
    name = str(c.raw("rule"))
    if name not in RULES:
        raise UsageError(f"the ONNX backend does not know the memory rule {name!r}", fix=f"It has: {', '.join(RULES)}.")
    return find(name)


def _state(c: Call, at: int) -> tuple[ir.Value, torch.dtype]:
    """The only tensor of the memory's state, and its dtype."""
    (node,) = c.nodes_at(at)
    return c.value(node), node.meta["type"].dtype


@translates(ours.delta_rule.default)
def delta_rule(c: Call) -> Sequence[ir.Value]:
    """Every token updates the memory and then reads it: [o [B, Hq, T, dv], S']."""
    rule, (state, dtype) = _rule(c), _state(c, 5)
    tokens = _tokens(c, 1, rule, dtype)
    q, heads = c.tensor(0, dtype), int(c.type(0).dims[1])
    out, state = advance(c.e, c.style, rule, (q, heads), tokens, state, float(c.raw("scale")))
    assert out is not None
    wanted = c.type(0).dtype
    return [out if wanted == dtype else c.e.cast(out, wanted), state]


@translates(ours.delta_rule_read.default)
def delta_rule_read(c: Call) -> ir.Value:
    """scale * S^T q, the memory staying as it is: [B, Hq, T, dv]."""
    e, (state, dtype) = c.e, _state(c, 1)
    (node,) = c.nodes_at(1)
    (rows, heads, tokens, dk), kv = c.type(0).dims, int(node.meta["type"].dims[1])
    # query heads of one KV head are rows of one product
    grouped = (rows, kv, scaled(tokens, int(heads) // kv))
    q = c.tensor(0, dtype) if heads == kv else e.reshape(c.tensor(0, dtype), c.type(0).dims, (*grouped, dk))
    out = e("MatMul", q, state)
    if float(c.raw("scale")) != 1.0:
        out = e("Mul", out, e.const(float(c.raw("scale")), dtype))
    if heads != kv:
        out = e.reshape(out, (*grouped, c.out.dims[3]), c.out.dims)
    return out if c.out.dtype == dtype else e.cast(out, c.out.dtype)


@translates(ours.replay.default)
def replay(c: Call) -> Sequence[ir.Value]:
    """Consolidation: epochs of the update over a window, all but the first without decay. In a sleep their number is
    the graph's input `passes`.
    """
    rule, (state, dtype) = _rule(c), _state(c, 4)
    tokens = _tokens(c, 0, rule, dtype)
    if not c.raw("written"):
        state = advance(c.e, c.style, rule, None, tokens, state, 1.0)[1]
    if c.passes is None or not rule.corrects:
        assert int(c.raw("passes")) == 1, "a number of passes that is fixed is 1"
        return [state]
    still = Tokens(**{**vars(tokens), "g": None})

    def body(before: ir.Value) -> ir.Value:
        return advance(c.e, c.style, rule, None, still, before, 1.0)[1]

    return [repeat(c.e, c.passes, (state,), lambda values: (body(values[0]),))[0]]


def advance(
    e: Emitter,
    style: Style,
    rule: Rule,
    q: tuple[ir.Value, int] | None,
    tokens: Tokens,
    state: ir.Value,
    scale: float,
) -> tuple[ir.Value | None, ir.Value]:
    """All tokens; q is ([B, Hq, T, dk], Hq) or None -> (reads [B, Hq, T, dv] or None, S' [B, H, dk, dv])."""
    run = _kernel if style.ops == "ort" else _scan
    return run(e, rule, q, tokens, state, scale)


def _kernel(
    e: Emitter, rule: Rule, q: tuple[ir.Value, int] | None, t: Tokens, state: ir.Value, scale: float
) -> tuple[ir.Value | None, ir.Value]:
    """As LinearAttention: tokens first, heads side by side."""

    def flat(x: ir.Value, width: int) -> ir.Value:
        """[B, H, T, d] -> [B, T, H*d]."""
        return e("Reshape", e.transpose(x, (0, 2, 1, 3)), e.ints(0, 0, width))

    v, beta = t.v, e.transpose(t.beta, (0, 2, 1))
    if not rule.corrects:  # the kernel's rules without the correction leave beta out
        v = e("Mul", v, e("Unsqueeze", t.beta, e.ints(3)))
    k = flat(t.k, t.heads * t.dk)
    name, decay = rule.name, None
    if t.g is None:
        name = {"gated": "linear", "gated_delta": "delta"}.get(name, name)
    else:
        decay = flat(t.g, t.heads * t.dk) if t.per_channel else e.transpose(t.g, (0, 2, 1))
    heads = t.heads if q is None else q[1]
    query = k if q is None else flat(q[0], heads * t.dk)
    out, new = e.several(
        "LinearAttention",
        2,
        *(query, k, flat(v, t.heads * t.dv), state, decay, beta if rule.corrects else None),
        domain=MICROSOFT,
        q_num_heads=heads,
        kv_num_heads=t.heads,
        update_rule=name,
        scale=scale,
    )
    if q is None:
        return None, new
    return e.transpose(e("Reshape", out, e.ints(0, 0, heads, t.dv)), (0, 2, 1, 3)), new


def _scan(
    e: Emitter, rule: Rule, q: tuple[ir.Value, int] | None, t: Tokens, state: ir.Value, scale: float
) -> tuple[ir.Value | None, ir.Value]:
    """Token by token: S <- e^g S; S <- S + k (beta (v - S^T k)); o = scale S^T q."""
    e.loops += 1
    tag = f"{e.prefix}scan.{e.loops}"
    kind = ir.TensorType(ir.DataType.FLOAT if state.type is None else state.type.dtype)
    before = ir.Value(name=f"{tag}.S", shape=ir.Shape([t.rows, t.heads, t.dk, t.dv]), type=kind)
    shapes = {"k": (t.heads, t.dk), "v": (t.heads, t.dv), "beta": (t.heads,)}
    given = {"k": t.k, "v": t.v, "beta": t.beta}
    if t.g is not None:
        shapes["g"], given["g"] = ((t.heads, t.dk) if t.per_channel else (t.heads,)), t.g
    if q is not None:
        shapes["q"], given["q"] = (q[1], t.dk), q[0]
    now = {n: ir.Value(name=f"{tag}.{n}", shape=ir.Shape([t.rows, *s]), type=kind) for n, s in shapes.items()}
    with e.inside() as nodes:
        after = _step(e, rule, now, before, t)
        results = [after]
        if q is not None:
            grouped = e("Reshape", now["q"], e.ints(0, t.heads, q[1] // t.heads, t.dk))
            results.append(e("Reshape", e("MatMul", grouped, after), e.ints(0, q[1], t.dv)))
            results[1].shape, results[1].type = ir.Shape([t.rows, q[1], t.dv]), kind
        after.shape, after.type = before.shape, kind
    graph = ir.Graph([before, *now.values()], results, nodes=nodes, name=tag)
    options: dict[str, Any] = {"body": graph, "num_scan_inputs": len(given), "scan_input_axes": [2] * len(given)}
    if q is None:
        return None, e.several("Scan", 1, state, *given.values(), **options)[0]
    new, out = e.several("Scan", 2, state, *given.values(), **options, scan_output_axes=[2])
    return (out if scale == 1.0 else e("Mul", out, e.const(scale, torch.float32))), new


def _step(e: Emitter, rule: Rule, now: dict[str, ir.Value], state: ir.Value, t: Tokens) -> ir.Value:
    """One token [B, H, d] and S [B, H, dk, dv] -> S'."""
    column, row = e.ints(3), e.ints(2)
    if "g" in now:
        decay = e("Exp", now["g"])
        state = e("Mul", state, e("Unsqueeze", decay, column if t.per_channel else e.ints(2, 3)))
    k, written = e("Unsqueeze", now["k"], column), e("Unsqueeze", now["v"], row)
    if rule.corrects:
        written = e("Sub", written, e("MatMul", e("Unsqueeze", now["k"], row), state))
    written = e("Mul", written, e("Unsqueeze", now["beta"], e.ints(2, 3)))
    return e("Add", state, e("Mul", k, written))


def _next_tail(c: Call, columns: ir.Value) -> ir.Value:
    """columns [B, C, K-1+T] (the tail before, then the tokens) -> the last K-1 up to each row's own length."""
    e, (rows, width, kept) = c.e, c.type(2).dims
    at = e("Add", e("Unsqueeze", c.tensor(3), e.ints(1, 2)), e.ints(*range(int(kept))))
    return e("GatherElements", columns, e("Expand", at, e.shape((rows, width, kept))), axis=2)


def _columns(c: Call) -> tuple[ir.Value, ir.Value]:
    """x as columns [B, C, T], and after the tail [B, C, K-1+T]."""
    x = c.e.transpose(c.tensor(0, c.type(2).dtype), (0, 2, 1))
    return x, c.e("Concat", c.tensor(2), x, axis=2)


@translates(ours.short_conv.default)
def short_conv(c: Call) -> Sequence[ir.Value]:
    """Depthwise causal convolution with a carried tail: (y [B, T, C], tail' [B, C, K-1])."""
    e, dtype = c.e, c.type(0).dtype
    x, columns = _columns(c)
    taps = int(c.type(1).dims[1])
    if c.style.ops == "ort":
        weight = e("Unsqueeze", c.tensor(1), e.ints(1))
        y = e.several("CausalConvWithState", 2, x, weight, None, c.tensor(2), domain=MICROSOFT)[0]
        return [e.transpose(y, (0, 2, 1)), _next_tail(c, columns)]
    total: ir.Value | None = None
    for j in range(taps):
        tap = e("Gather", c.tensor(1), e.ints(j), axis=1)  # [C, 1]
        end = j - taps + 1 or 2**63 - 1
        part = e("Mul", e("Slice", columns, e.ints(j), e.ints(end), e.ints(2)), tap)
        total = part if total is None else e("Add", total, part)
    assert total is not None
    y = e.transpose(total, (0, 2, 1))
    return [y if dtype == c.type(2).dtype else e.cast(y, dtype), _next_tail(c, columns)]
