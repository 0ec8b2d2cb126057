"""Fast-weight memories: short convolution, update and read, read alone, consolidation by replay.

The recurrence is an operator of ONNX Runtime's if it has one for the rule. In plain operators it is an affine map, for
as many tokens as a sleep has; else a `Scan` over tokens.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Sequence
from importlib import import_module

import onnx_ir as ir
import torch

from sleepc.backends.onnx import memories
from sleepc.backends.onnx.affine import known, one_pass, repeated, whole_sum
from sleepc.backends.onnx.aten_indexing import elements
from sleepc.backends.onnx.call import Call, ours, translates
from sleepc.backends.onnx.control import repeat
from sleepc.backends.onnx.emit import MICROSOFT
from sleepc.backends.onnx.scan import one_token, scan
from sleepc.backends.onnx.spelling import Query, States, Tokens, spelling_of
from sleepc.ir.dims import scaled
from sleepc.memory.registry import find
from sleepc.memory.rule import Rule

for _module in pkgutil.iter_modules(memories.__path__):
    import_module(f"{memories.__name__}.{_module.name}")


def _tokens(c: Call, first: int, rule: Rule, dtype: torch.dtype) -> Tokens:
    """k, v, g, beta as arguments `first` .. of a call, and the rule's other gates after the states, in their dtype;
    what was learned stands among the states.
    """
    at = dict(zip(("k", "v", "g", "beta"), range(first, first + 4), strict=True))
    nodes = {name: c.node_at(place) for name, place in at.items() if name in ("k", "v", *rule.gates)}
    others = c.nodes_at(first + 5) if len(c.node.args) > first + 5 else []
    nodes |= dict(zip([name for name in rule.gates if name not in at], others, strict=True))
    types = {name: node.meta["type"] for name, node in nodes.items()}
    values = {n: c.value(x) if types[n].dtype == dtype else c.e.cast(c.value(x), dtype) for n, x in nodes.items()}
    (rows, heads, count, dk), dv = types["k"].dims, types["v"].dims[3]
    per_channel = frozenset(name for name in rule.gates if len(types[name].dims) == 4)
    learned = (c.value(node) for node in c.nodes_at(first + 4)[len(rule.states) :])
    return Tokens(values, per_channel, rows, int(heads), count, int(dk), int(dv), tuple(learned))


def _rule(c: Call) -> Rule:
    name = str(c.raw("rule"))
    spelling_of(name)
    return find(name)


def _states(c: Call, at: int) -> tuple[list[ir.Value], torch.dtype]:
    """The tensors of the memory, what was learned after them, and the dtype of all."""
    nodes = c.nodes_at(at)
    return [c.value(node) for node in nodes], nodes[0].meta["type"].dtype


@translates(ours.delta_rule.default)
def delta_rule(c: Call) -> Sequence[ir.Value]:
    """Every token updates the memory and then reads it: [o [B, Hq, T, dv], *states']."""
    rule, (states, dtype) = _rule(c), _states(c, 5)
    tokens, states = _tokens(c, 1, rule, dtype), states[: len(rule.states)]
    q, heads = c.tensor(0, dtype), int(c.type(0).dims[1])
    out, states = advance(c, rule, (q, heads), tokens, states, float(c.raw("scale")))
    assert out is not None
    wanted = c.type(0).dtype
    return [out if wanted == dtype else c.e.cast(out, wanted), *states]


@translates(ours.delta_rule_read.default)
def delta_rule_read(c: Call) -> ir.Value:
    """scale times what q reads, without changing the memory: [B, Hq, T, dv]."""
    e, rule, (states, dtype) = c.e, _rule(c), _states(c, 1)
    kv = int(c.nodes_at(1)[0].meta["type"].dims[1])
    rows, heads, tokens, dk = c.type(0).dims
    # query heads of one KV head are rows of one product
    grouped = (rows, kv, scaled(tokens, int(heads) // kv))
    q = c.tensor(0, dtype) if heads == kv else e.reshape(c.tensor(0, dtype), c.type(0).dims, (*grouped, dk))
    out = spelling_of(rule.name).read(e, states, q)
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
    rule, (states, dtype) = _rule(c), _states(c, 4)
    tokens, states = _tokens(c, 0, rule, dtype), states[: len(rule.states)]
    if not c.raw("written"):
        states = advance(c, rule, None, tokens, states, 1.0)[1]
    if c.passes is None or not rule.corrects:
        assert int(c.raw("passes")) == 1, "a number of passes that is fixed is 1"
        return states
    again = tokens.without({name for name, gate in rule.gates.items() if not gate.again})
    count = known(c.e, tokens.count)
    if c.style.ops == "portable" and rule.affine and count is not None:
        return [repeated(c.e, one_pass(c.e, rule, again, count), states[0], c.passes)]
    return repeat(c.e, c.passes, states, lambda before: advance(c, rule, None, again, before, 1.0)[1])


def advance(
    c: Call, rule: Rule, q: Query | None, tokens: Tokens, states: States, scale: float
) -> tuple[ir.Value | None, list[ir.Value]]:
    """All tokens; q is ([B, Hq, T, dk], Hq) or None -> (reads [B, Hq, T, dv] or None, states')."""
    if rule.by_window:
        return None, spelling_of(rule.name).step(c.e, rule, tokens.values, [*states, *tokens.learned], tokens)
    kernel = spelling_of(rule.name).kernel if c.style.ops == "ort" else None
    count = known(c.e, tokens.count)
    if c.style.ops == "portable" and rule.affine and q is None and count is not None:
        (state,) = states
        if not rule.corrects:
            return None, [whole_sum(c.e, tokens, count, state)]
        return None, [one_pass(c.e, rule, tokens, count)(c.e, state)]
    run = kernel or (one_token if count == 1 else scan)
    return run(c.e, rule, q, tokens, states, scale)


def _next_tail(c: Call, columns: ir.Value) -> ir.Value:
    """columns [B, C, K-1+T] (the tail before, then the tokens) -> the last K-1 up to each row's own length."""
    e, (rows, width, kept) = c.e, c.type(2).dims
    at = e("Add", e("Unsqueeze", c.tensor(3), e.ints(1, 2)), e.ints(*range(int(kept))))
    where = e("Expand", at, e.shape((rows, width, kept)))
    return elements(c, columns, where, 2, ((rows, width, "T"), (rows, width, kept)))


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
