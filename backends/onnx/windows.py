"""The window: slots, who sees whom, attention over kept keys, and writing into slots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import onnx_ir as ir
import torch

from sleepc.backends.onnx.call import Call, fuses, ours, translates
from sleepc.backends.onnx.control import choose, is_one_token
from sleepc.errors import SleepcError
from sleepc.ir.dims import scaled
from sleepc.masks import Mask


def _number(c: Call, value: int) -> ir.Value:
    return c.e.const(value, torch.int64)


def _modulo(c: Call, x: ir.Value, n: int) -> ir.Value:
    """x mod n, not negative."""
    return c.e("Mod", x, _number(c, n))


@translates(ours.window_slots.default)
def window_slots(c: Call) -> ir.Value:
    """positions [B, T] -> slots [B, T]: p < sinks -> p, any other -> sinks + (p - sinks) mod window."""
    p, window, sinks = c.tensor(0), c.raw("window"), c.raw("sinks")
    ring = c.e("Add", _modulo(c, c.e("Sub", p, _number(c, sinks)), window), _number(c, sinks))
    return c.e("Where", c.e("Less", p, _number(c, sinks)), p, ring)


def _held(c: Call, position: ir.Value, window: int, sinks: int) -> ir.Value:
    """Position of the token in every slot, -1 where there is none; position [B] -> [B, W]."""
    slot = c.e.ints(*range(sinks + window))
    last = c.e("Unsqueeze", c.e("Sub", position, _number(c, 1)), c.e.ints(1))
    ring = c.e("Sub", last, _modulo(c, c.e("Sub", last, slot), window))
    nothing = _number(c, -1)
    sink = c.e("Where", c.e("LessOrEqual", slot, last), slot, nothing)
    ring = c.e("Where", c.e("GreaterOrEqual", ring, _number(c, sinks)), ring, nothing)
    is_sink = c.e.const([i < sinks for i in range(sinks + window)], torch.bool)
    return c.e("Where", is_sink, sink, ring)


def _keys(c: Call, window: int, sinks: int) -> ir.Value:
    """Positions of all keys, slots first, [B, W + T]; -1 for none. Shared by all masks of a graph."""
    positions, position = c.tensor(0), c.tensor(1)

    def make() -> ir.Value:
        return c.e("Concat", _held(c, position, window, sinks), positions, axis=1)

    return c.e.once(("keys", positions.name, window, sinks), make)


def _seen(c: Call) -> ir.Value:
    """Who sees whom, bool [B, T, W + T] (sleepc/ops/functional/windows.py has the rule)."""
    window, sinks, mask = int(c.raw("window")), int(c.raw("sinks")), Mask.parse(str(c.raw("sees", "")))
    own = mask.window
    keys = c.e("Unsqueeze", _keys(c, window, sinks), c.e.ints(1))
    queries = c.e("Unsqueeze", c.tensor(0), c.e.ints(2))
    distance = c.e("Sub", queries, keys)
    near = c.e("Less", distance, _number(c, min(own or window, window)))
    if (own == 0 or own > window) and sinks:
        sink = c.e("Less", keys, _number(c, sinks))
        if own:
            sink = c.e("And", sink, c.e("Less", distance, _number(c, own)))
        near = c.e("Or", near, sink)
    for kind, n in mask.without_window().parts:
        near = c.e("And", near, spelling(kind)(c, queries, keys, n))
    real = c.e("And", c.e("GreaterOrEqual", keys, _number(c, 0)), c.e("LessOrEqual", keys, queries))
    return c.e("And", near, real)


def chunk(c: Call, queries: ir.Value, keys: ir.Value, n: int) -> ir.Value:
    """queries // n == keys // n, rounding down."""

    def number(x: ir.Value) -> ir.Value:
        return c.e("Div", c.e("Sub", x, _modulo(c, x, n)), _number(c, n))

    return c.e("Equal", number(queries), number(keys))


# Masks by their kind (sleepc/masks): queries [B, T, 1] and keys [B, 1, W + T] at positions -> bool [B, T, W + T].
SPELLINGS: dict[str, Callable[[Call, ir.Value, ir.Value, int], ir.Value]] = {"chunk": chunk}


def spelling(kind: str) -> Callable[[Call, ir.Value, ir.Value, int], ir.Value]:
    """Raises SleepcError for a kind of mask that has none."""
    if kind not in SPELLINGS:
        raise SleepcError(f"masks of kind {kind!r} have no ONNX form", fix="Run the artifact with the eager backend.")
    return SPELLINGS[kind]


@translates(ours.window_mask.default)
def window_mask(c: Call) -> ir.Value:
    """Who sees whom, bool [B, 1, T, W + T]."""
    return c.e("Unsqueeze", _seen(c), c.e.ints(1))


@translates(ours.window_bias.default)
def window_bias(c: Call) -> ir.Value:
    """The same as what is added to scores: slope times (j - i), the least number where i does not see j."""
    dtype, slopes = c.out.dtype, list(c.raw("slopes"))
    window, sinks = int(c.raw("window")), int(c.raw("sinks"))
    keys = c.e("Unsqueeze", _keys(c, window, sinks), c.e.ints(1))
    distance = c.e("Sub", keys, c.e("Unsqueeze", c.tensor(0), c.e.ints(2)))
    rate = c.e.const([[[s]] for s in slopes], dtype)
    bias = c.e("Mul", rate, c.e("Unsqueeze", c.e.cast(distance, dtype), c.e.ints(1)))
    least = c.e.const(torch.finfo(dtype).min, dtype)
    return c.e("Where", c.e("Unsqueeze", _seen(c), c.e.ints(1)), bias, least)


@fuses(ours.window_attention.default)
def fused_attention(c: Call) -> ir.Value | None:
    """As `Attention`, the window being its past; not with sink logits or a softcap, which it orders otherwise."""
    if c.raw(6) is not None or c.raw("softcap", 0.0):
        return None
    q, k, v, k_window, v_window = (c.tensor(i) for i in range(5))
    mask = _added(c, 5)
    scale = float(c.raw("scale"))

    def many() -> ir.Value:
        # the kernel wants the outputs for keys and values with those of the past, which nobody reads
        return c.e.several("Attention", 3, q, k, v, mask, k_window, v_window, scale=scale)[0]

    def one() -> ir.Value:
        return _one_token(c, q, (k, v, k_window, v_window), mask)

    if not c.style.columns or c.type(5).dims[1] != 1:
        return many()
    if c.style.tokens != "any":
        return one() if c.style.tokens == "one" else many()
    if c.e.sizes["T"].const_value is not None:  # a sleep's T is fixed
        return many()
    return choose(c.e, is_one_token(c.e), lambda: [one()], lambda: [many()], lambda: [c.out])[0]


def _added(c: Call, at: int) -> ir.Value:
    """What a mask (argument `at`) adds to scores. One of all layers is made once, and adding takes less time than
    choosing.
    """
    if c.type(at).dtype != torch.bool:
        return c.tensor(at)
    least = torch.finfo(c.out.dtype).min
    return c.e("Where", c.tensor(at), c.e.const(0.0, c.out.dtype), c.e.const(least, c.out.dtype))


def _one_token(c: Call, q: ir.Value, others: Sequence[ir.Value], mask: ir.Value) -> ir.Value:
    """Attention of one token, window and new key apart: `Attention` copies the window to put the new key after it,
    which takes most of its time if a window of 256 is read for one token.
    """
    e, (k, v, k_window, v_window) = c.e, others
    (batch, heads, tokens, width), kv = c.type(0).dims, int(c.type(1).dims[1])
    grouped = (batch, kv, scaled(tokens, int(heads) // kv))
    scale = float(c.raw("scale"))

    def scored(keys: ir.Value) -> ir.Value:
        # ONNX Runtime makes these three one kernel, and other runtimes know them
        return e("Mul", e("MatMul", rows, e.transpose(keys, (0, 1, 3, 2))), e.const(scale, c.out.dtype))

    rows = e.reshape(q, c.type(0).dims, (*grouped, width))  # query heads of one KV head are rows of one product
    scores = e("Concat", scored(k_window), scored(k), axis=3)
    weights = e("Softmax", e("Add", scores, mask), axis=-1)
    old, new = e.several("Split", 2, weights, e.ints(int(c.type(3).dims[2]), 1), axis=3)
    out = e("Add", e("MatMul", old, v_window), e("MatMul", new, v))
    return e.reshape(out, (*grouped, c.out.dims[3]), c.out.dims)


@translates(ours.window_attention.default)
def window_attention(c: Call) -> ir.Value:
    """Scores * scale, softcap, mask, softmax with the sink column, values; queries grouped by KV head."""
    e, dtype = c.e, c.out.dtype
    (rows, heads, tokens, width), kv = c.type(0).dims, int(c.type(1).dims[1])
    groups, width_v = int(heads) // kv, int(c.type(2).dims[3])
    keys = e("Concat", c.tensor(3), c.tensor(1), axis=2)
    values = e("Concat", c.tensor(4), c.tensor(2), axis=2)
    grouped = e.reshape(c.tensor(0), None, (rows, kv, groups, tokens, width))
    keys = e("Unsqueeze", e.transpose(keys, (0, 1, 3, 2)), e.ints(2))
    scores = e("Mul", e("MatMul", grouped, keys), e.const(float(c.raw("scale")), dtype))
    if c.raw("softcap", 0.0):
        cap = e.const(float(c.raw("softcap")), dtype)
        scores = e("Mul", e("Tanh", e("Div", scores, cap)), cap)
    scores, seen = _masked(c, scores, (rows, kv, groups, tokens))
    weights = _softmax(c, scores, 6, (1, kv, groups, 1, 1))
    weights = e("Where", seen, weights, e.const(0.0, dtype))
    out = e("MatMul", weights, e("Unsqueeze", values, e.ints(2)))
    return e.reshape(out, None, (rows, heads, tokens, width_v))


def _masked(c: Call, scores: ir.Value, dims: tuple[int | str, int, int, int | str]) -> tuple[ir.Value, ir.Value]:
    """scores [B, Hkv, G, T, K] -> (with the mask, who sees whom)."""
    e, dtype, mask, type_ = c.e, c.out.dtype, c.tensor(5), c.type(5)
    rows, kv, groups, tokens = dims
    least = e.const(torch.finfo(dtype).min, dtype)
    if type_.dtype == torch.bool:
        if type_.dims[1] == 1:
            seen = e("Unsqueeze", mask, e.ints(2))  # [B, 1, 1, T, K]
        else:
            seen = e.reshape(mask, None, (rows, kv, groups, tokens, type_.dims[3]))
        return e("Where", seen, scores, least), seen
    bias = e.reshape(mask, None, (rows, kv, groups, tokens, type_.dims[3]))
    seen = e("Greater", bias, e.const(torch.finfo(dtype).min / 2, dtype))
    return e("Where", seen, e("Add", scores, bias), least), seen


def _softmax(c: Call, scores: ir.Value, at: int, dims: tuple[int, ...]) -> ir.Value:
    """Over keys, with a column of logits (argument `at`, as `dims`) that take probability and give nothing, if there is
    one.
    """
    if c.raw(at) is None:
        return c.e("Softmax", scores, axis=-1)
    sink_logits = c.e.reshape(c.tensor(at, c.out.dtype), None, dims)
    most = c.e("Max", c.e("ReduceMax", scores, c.e.ints(-1), keepdims=1), sink_logits)
    powers = c.e("Exp", c.e("Sub", scores, most))
    total = c.e("ReduceSum", powers, c.e.ints(-1), keepdims=1)
    return c.e("Div", powers, c.e("Add", total, c.e("Exp", c.e("Sub", sink_logits, most))))


@translates(ours.kept_attention.default)
def kept_attention(c: Call) -> ir.Value:
    """One softmax over kept pairs, window and new tokens, multiplied apart: nothing is copied. All heads' queries meet
    all kept keys of a layer, of which the mask leaves each its own.
    """
    e, dtype, (rows, heads, tokens, width), kv = c.e, c.out.dtype, c.type(0).dims, int(c.type(1).dims[1])
    slots, length, width_v = c.type(6).dims[1], int(c.type(3).dims[2]), int(c.type(2).dims[3])
    together, grouped = (rows, scaled(tokens, int(heads))), (rows, kv, scaled(tokens, int(heads) // kv))
    each = (rows, heads, tokens)
    q = e("Mul", c.tensor(0), e.const(float(c.raw("scale")), dtype))
    of_window, of_new = _cut(c, _added(c, 5), [length, tokens])

    def scored(shape: tuple[int | str, ...], keys: ir.Value, order: tuple[int, ...], count: int | str) -> ir.Value:
        product = e("MatMul", e.reshape(q, c.type(0).dims, (*shape, width)), e.transpose(keys, order))
        product = e.reshape(product, (*shape, count), (*each, count))
        if not c.raw("softcap", 0.0):
            return product
        cap = e.const(float(c.raw("softcap")), dtype)
        return e("Mul", e("Tanh", e("Div", product, cap)), cap)

    by_group = (rows, kv, int(heads) // kv, tokens, slots)
    kept = e.reshape(scored(together, c.tensor(6), (0, 2, 1), slots), None, by_group)
    kept = e("Add", kept, e("Unsqueeze", _added(c, 8), e.ints(2)))
    window = e("Add", scored(grouped, c.tensor(3), (0, 1, 3, 2), length), of_window)
    new = e("Add", scored(grouped, c.tensor(1), (0, 1, 3, 2), tokens), of_new)
    scores = e("Concat", e.reshape(kept, None, (*each, slots)), window, new, axis=3)
    weights = _softmax(c, scores, 9, (1, int(heads), 1, 1))
    parts = _cut(c, weights, [slots, length, tokens])

    def answer(own: ir.Value, shape: tuple[int | str, ...], count: int | str, values: ir.Value) -> ir.Value:
        product = e("MatMul", e.reshape(own, None, (*shape, count)), values)
        return e.reshape(product, (*shape, width_v), (*each, width_v))

    old, near = answer(parts[0], together, slots, c.tensor(7)), answer(parts[1], grouped, length, c.tensor(4))
    return e("Add", old, e("Add", near, answer(parts[2], grouped, tokens, c.tensor(2))))


def _cut(c: Call, x: ir.Value, sizes: Sequence[int | str]) -> Sequence[ir.Value]:
    """x [B, H, T, sum of sizes] in parts, of which the last may have any size: tract has no Split for that."""
    e = c.e
    if c.style.ops == "ort":
        return e.several("Split", len(sizes), x, e.shape(sizes), axis=3)
    known = [size for size in map(e.size, sizes[:-1]) if isinstance(size, int)]
    ends = [0, *accumulate(known), 2**63 - 1]
    return [e("Slice", x, e.ints(start), e.ints(end), e.ints(3)) for start, end in pairwise(ends)]


@translates(ours.write_slots.default)
def write_slots(c: Call) -> ir.Value:
    """buffer [B, H, W, ..], new [B, H, T, ..], slots [B, T], -1 for none -> the buffer with new values in their slots.

    A slot more than there are takes what is not to be written.
    """
    e, (rows, heads, width, *rest) = c.e, c.type(0).dims
    tokens = c.type(1).dims[2]
    buffer, new = c.tensor(0), c.tensor(1, c.type(0).dtype)
    spare = e("Expand", e.const(0, c.type(0).dtype), e.shape((rows, heads, 1, *rest)))
    slots = c.tensor(2)
    at = e("Where", e("Less", slots, _number(c, 0)), _number(c, int(width)), slots)
    at = e("Unsqueeze", at, e.ints(1, *range(3, 3 + len(rest))))
    at = e("Expand", at, e.shape((rows, heads, tokens, *rest)))
    room = e("ScatterElements", e("Concat", buffer, spare, axis=2), at, new, axis=2)
    return e("Slice", room, e.ints(0), e.ints(int(width)), e.ints(2))
