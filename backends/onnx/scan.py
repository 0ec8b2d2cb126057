"""A memory rule token by token, as a `Scan`: never unrolled. One token needs none."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch

from sleepc.backends.onnx.emit import Emitter
from sleepc.backends.onnx.spelling import Query, States, Tokens, spelling_of
from sleepc.memory.rule import Rule


def one_token(
    e: Emitter, rule: Rule, q: Query | None, t: Tokens, states: States, scale: float
) -> tuple[ir.Value | None, list[ir.Value]]:
    """The same as `scan` for the only token."""
    spelling = spelling_of(rule.name)
    now = {name: e("Squeeze", x, e.ints(2)) for name, x in t.values.items()}
    new = spelling.step(e, rule, now, [*states, *t.learned], t)
    if q is None:
        return None, new
    grouped = e("Reshape", q[0], e.ints(0, t.heads, q[1] // t.heads, t.dk))
    out = e("Reshape", spelling.read(e, [*new, *t.learned], grouped), e.ints(0, q[1], 1, t.dv))
    return (out if scale == 1.0 else e("Mul", out, e.const(scale, torch.float32))), new


def scan(
    e: Emitter, rule: Rule, q: Query | None, t: Tokens, states: States, scale: float
) -> tuple[ir.Value | None, list[ir.Value]]:
    """The rule's step on every token: (reads [B, Hq, T, dv] or None, states').

    Tokens come first, in order: iree-import-onnx takes every Scan so, whatever its axes are (findings/).
    """
    e.loops += 1
    tag, spelling = f"{e.prefix}scan.{e.loops}", spelling_of(rule.name)
    kind = ir.TensorType(ir.DataType.FLOAT if states[0].type is None else states[0].type.dtype)
    sizes = rule.shapes(t.heads, t.dk, t.dv)
    before = [ir.Value(name=f"{tag}.{n}", shape=ir.Shape([t.rows, *size]), type=kind) for n, size in sizes.items()]
    widths = {"k": (t.dk,), "v": (t.dv,)} | {name: (t.dk,) for name in t.per_channel}
    given = {name: t.values[name] for name in ("k", "v", *sorted(t.values.keys() - {"k", "v"}))}
    shapes = {name: (t.heads, *widths.get(name, ())) for name in given}
    if q is not None:
        shapes["q"], given["q"] = (q[1], t.dk), q[0]
    given = {name: e.transpose(x, (2, 0, 1, 3)[: len(shapes[name]) + 2]) for name, x in given.items()}
    now = {n: ir.Value(name=f"{tag}.{n}", shape=ir.Shape([t.rows, *s]), type=kind) for n, s in shapes.items()}
    with e.inside() as nodes:
        results = spelling.step(e, rule, now, [*before, *t.learned], t)
        if q is not None:
            grouped = e("Reshape", now["q"], e.ints(0, t.heads, q[1] // t.heads, t.dk))
            out = e("Reshape", spelling.read(e, [*results, *t.learned], grouped), e.ints(0, q[1], t.dv))
            out.shape, out.type = ir.Shape([t.rows, q[1], t.dv]), kind
            results = [*results, out]
        for after, old in zip(results, before, strict=False):
            after.shape, after.type = old.shape, kind
    graph = ir.Graph([*before, *now.values()], results, nodes=nodes, name=tag)
    options: dict[str, Any] = {"body": graph, "num_scan_inputs": len(given)}
    if q is None:
        return None, list(e.several("Scan", len(before), *states, *given.values(), **options))
    *new, out = e.several("Scan", len(before) + 1, *states, *given.values(), **options)
    out = e("Transpose", out, perm=[1, 2, 0, 3])
    return (out if scale == 1.0 else e("Mul", out, e.const(scale, torch.float32))), list(new)
