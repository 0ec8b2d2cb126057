"""Registration with torch.library: `sleepc::NAME`, opaque to tracing, with gradients.

A table of (contract, function, fake kernel) is all there is; gradients are generic. Everywhere: B
and T may be symbolic, results are contiguous, no result shares memory with an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sleepc.memory.registry import find
from sleepc.ops import functional

NAMESPACE = "sleepc"


def _backward_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """Gradients by running the plain function once more: less to get wrong, less memory held."""

    def backward(ctx: Any, *gradients: Any) -> Any:
        flat, spec = pytree.tree_flatten(ctx.arguments)
        saved = iter(ctx.saved_tensors)
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            # an alias per argument keeps apart the gradients of a tensor that is passed twice
            flat = [next(saved) if x is _SAVED else x for x in flat]
            flat = [x.view_as(x) if _differentiable(x) else x for x in flat]
            results = function(*pytree.tree_unflatten(flat, spec), **ctx.options)
        pairs = zip(pytree.tree_leaves(results), pytree.tree_leaves(gradients), strict=True)
        used = [(r, g) for r, g in pairs if g is not None and r.requires_grad]
        at = [i for i, x in enumerate(flat) if _differentiable(x)]
        made = _gradients(used, [flat[i] for i in at], create_graph)
        by_index = dict(zip(at, made, strict=True))
        found = pytree.tree_unflatten([by_index.get(i) for i in range(len(flat))], spec)
        return found[
            : len(ctx.needs_input_grad)
        ]  # torch leaves out arguments at their defaults, and wants none for them

    return backward


_SAVED = object()  # stands for a tensor that autograd keeps


def _differentiable(x: Any) -> bool:
    return isinstance(x, Tensor) and x.requires_grad


def _gradients(used: list[tuple[Tensor, Tensor]], inputs: list[Tensor], create_graph: bool) -> Sequence[Tensor | None]:
    if not used or not inputs:
        return [None] * len(inputs)
    results, gradients = zip(*used, strict=True)
    return torch.autograd.grad(results, inputs, gradients, allow_unused=True, create_graph=create_graph)


def _setup_context(ctx: Any, inputs: Any, keyword_only_inputs: Any, output: Any) -> None:
    flat, spec = pytree.tree_flatten(tuple(inputs))
    ctx.save_for_backward(*[x for x in flat if isinstance(x, Tensor)])
    flat = [_SAVED if isinstance(x, Tensor) else x for x in flat]
    ctx.arguments, ctx.options = pytree.tree_unflatten(flat, spec), dict(keyword_only_inputs)


def _define(
    contract: str,
    function: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    differentiable: bool = True,
) -> None:
    """Register `function` (named as the operator) under the schema `contract`."""

    def kernel(*args: Any, **kwargs: Any) -> Any:
        results = function(*args, **kwargs)
        return pytree.tree_map(lambda x: x.contiguous(), results)

    op = torch.library.custom_op(f"{NAMESPACE}::{function.__name__}", kernel, mutates_args=(), schema=contract)
    op.register_fake(fake)
    if differentiable:
        # an operator without keyword-only arguments gets a setup call without them
        def setup(ctx: Any, inputs: Any, output: Any, keyword_only_inputs: Any = None) -> None:
            _setup_context(ctx, inputs, keyword_only_inputs or {}, output)

        op.register_autograd(_backward_of(function), setup_context=setup)


def _attention(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Tensor:
    return q.new_empty(*q.shape[:3], v.shape[3])


def _window_slots(positions: Tensor, *, window: int, sinks: int) -> Tensor:
    return positions.new_empty(positions.shape)


def _window_mask(positions: Tensor, position: Tensor, *, window: int, sinks: int, **_: Any) -> Tensor:
    rows, tokens = positions.shape
    return positions.new_empty(rows, 1, tokens, sinks + window + tokens, dtype=torch.bool)


def _window_bias(
    positions: Tensor,
    position: Tensor,
    *,
    window: int,
    sinks: int,
    slopes: Sequence[float],
    dtype: torch.dtype,
    **_: Any,
) -> Tensor:
    rows, tokens = positions.shape
    return positions.new_empty(rows, len(slopes), tokens, sinks + window + tokens, dtype=dtype)


def _write_slots(buffer: Tensor, new: Tensor, slots: Tensor) -> Tensor:
    return buffer.new_empty(buffer.shape)


def _short_conv(x: Tensor, weight: Tensor, tail: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), tail.new_empty(tail.shape)


def _l2norm(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    return x.new_empty(x.shape)


def _rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _linears(x: Tensor, weights: Sequence[Tensor], *_: Any, width: int = 0) -> list[Tensor]:
    rows, sizes = x.shape[:-1], [weight.shape[0] for weight in weights]
    if width:
        return [x.new_empty(rows[0], size // width, rows[1], width) for size in sizes]
    return [x.new_empty(*rows, size) for size in sizes]


def _masked_l2norm(x: Tensor, real: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _gates(real: Tensor, strengths: Tensor, decays: Tensor | None = None, *_: Any, **__: Any) -> list[Tensor]:
    rows, tokens, heads = strengths.shape
    made = [strengths.new_empty(rows, heads, tokens)]
    if decays is not None:
        wide = decays.shape[2] // heads
        made.append(decays.new_empty(rows, heads, tokens, *([wide] if wide > 1 else [])))
    return made


def _mixed(window: Tensor, memory: Tensor, share: Tensor, live: Tensor) -> Tensor:
    return window.new_empty(window.shape)


def _gated_norm(x: Tensor, weight: Tensor, opening: Tensor, *, eps: float) -> Tensor:
    return opening.new_empty(opening.shape)


def _same(state: Sequence[Tensor], rule: str) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in find(rule).split(state)[0]]


def _delta_rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Sequence[Tensor], *_: Any, rule: str, **__: Any
) -> list[Tensor]:
    return [q.new_empty(*q.shape[:3], v.shape[3]), *_same(state, rule)]


def _delta_rule_read(q: Tensor, state: Sequence[Tensor], *, rule: str, scale: float) -> Tensor:
    # what a rule reads may be narrower than its state: ask it
    return functional.delta_rule_read(q, state, rule=rule, scale=scale)


def _replay(
    k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Sequence[Tensor], *_: Any, rule: str, **__: Any
) -> list[Tensor]:
    return _same(state, rule)


_define(
    "(Tensor q, Tensor k, Tensor v, Tensor? mask=None, Tensor? sink_logits=None, Tensor? by_distance=None, *,"
    ' float scale, float softcap=0.0, bool causal=False, str sees="", float[] slopes=[]) -> Tensor',
    functional.attention,
    _attention,
)
_define(
    "(Tensor positions, *, int window, int sinks) -> Tensor",
    functional.window_slots,
    _window_slots,
    differentiable=False,
)
_define(
    '(Tensor positions, Tensor position, *, int window, int sinks, str sees="") -> Tensor',
    functional.window_mask,
    _window_mask,
    differentiable=False,
)
_define(
    "(Tensor positions, Tensor position, *, int window, int sinks, float[] slopes, ScalarType dtype,"
    ' str sees="") -> Tensor',
    functional.window_bias,
    _window_bias,
    differentiable=False,
)
_define(
    "(Tensor q, Tensor k, Tensor v, Tensor k_window, Tensor v_window, Tensor mask,"
    " Tensor? sink_logits=None, *, float scale, float softcap=0.0) -> Tensor",
    functional.window_attention,
    _attention,
)
_define(
    "(Tensor q, Tensor k, Tensor v, Tensor k_window, Tensor v_window, Tensor mask, Tensor k_kept, Tensor v_kept,"
    " Tensor kept_mask, Tensor? sink_logits=None, *, float scale, float softcap=0.0) -> Tensor",
    functional.kept_attention,
    _attention,
)
_define(
    "(Tensor buffer, Tensor new, Tensor slots) -> Tensor",
    functional.write_slots,
    _write_slots,
)
_define(
    "(Tensor x, Tensor weight, Tensor tail, Tensor lengths) -> (Tensor, Tensor)",
    functional.short_conv,
    _short_conv,
)
_define("(Tensor x) -> Tensor", functional.l2norm, _l2norm)
_define("(Tensor x, Tensor weight, *, float eps) -> Tensor", functional.rms_norm, _rms_norm)
_define("(Tensor x, Tensor cos, Tensor sin) -> Tensor", functional.rotary, _rotary)
_define("(Tensor x, Tensor real) -> Tensor", functional.masked_l2norm, _masked_l2norm)
_define(
    "(Tensor real, Tensor strengths, Tensor? decays=None, Tensor? rate=None) -> Tensor[]",
    functional.gates,
    _gates,
)
_define("(Tensor window, Tensor memory, Tensor share, Tensor live) -> Tensor", functional.mixed, _mixed)
_define("(Tensor x, Tensor weight, Tensor opening, *, float eps) -> Tensor", functional.gated_norm, _gated_norm)
_define(
    "(Tensor x, Tensor[] weights, Tensor[]? biases=None, *, int width=0) -> Tensor[]",
    functional.linears,
    _linears,
)
_define(
    "(Tensor q, Tensor k, Tensor v, Tensor g, Tensor beta, Tensor[] state, Tensor[]? gates=None, *, str rule,"
    " float scale, int chunk=64) -> Tensor[]",
    functional.delta_rule,
    _delta_rule,
)
_define(
    "(Tensor q, Tensor[] state, *, str rule, float scale) -> Tensor",
    functional.delta_rule_read,
    _delta_rule_read,
)
_define(
    "(Tensor k, Tensor v, Tensor g, Tensor beta, Tensor[] state, Tensor[]? gates=None, *, str rule, int passes,"
    " bool written, int chunk=64) -> Tensor[]",
    functional.replay,
    _replay,
)
