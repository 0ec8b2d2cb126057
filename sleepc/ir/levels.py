"""Levels: which operators a graph may call, and their names in the text form.

The tables are explicit, since names come from files: an operator is pure (no mutation, no files,
no randomness) and says nothing about devices. What is missing here cannot be saved or loaded.
"""

from __future__ import annotations

import importlib
import operator as python
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import torch
from torch._ops import OpOverload

from sleepc.errors import SleepcError

aten = torch.ops.aten

Level = Literal["ATEN", "CANONICAL", "CONVERTED", "STEP", "LOWERED"]

# At ATEN, which no artifact holds, every operator is allowed, and a text may name what torch.export is known to write;
# at LOWERED, which none holds either, a few operators stand for patterns of others. The rest differ in what passes
# promise, not in operators.
TEXT_LEVELS = ("ATEN", "CANONICAL", "CONVERTED", "STEP", "LOWERED")

# Arguments at level ATEN only: where a tensor lies is a backend's business.
PLACEMENT = ("device", "layout", "pin_memory", "memory_format", "non_blocking")

_ATEN = {
    "products": "addbmm addmm addmv baddbmm bmm dot einsum linear matmul mm mv outer",
    "arithmetic": """
        abs add.Scalar add.Tensor addcdiv addcmul ceil clamp clamp.Tensor clamp_max clamp_min
        clip div.Scalar div.Scalar_mode div.Tensor div.Tensor_mode floor floor_divide
        floor_divide.Scalar fmod.Scalar fmod.Tensor frac maximum minimum mul.Scalar mul.Tensor neg
        reciprocal remainder.Scalar remainder.Scalar_Tensor remainder.Tensor round round.decimals
        rsub.Scalar rsub.Tensor sign square sub.Scalar sub.Tensor true_divide.Tensor trunc
        lerp.Scalar lerp.Tensor max.other min.other multiply.Tensor divide.Tensor subtract.Tensor""",
    "functions": """
        cos erf erfinv exp exp2 expm1 log log10 log1p log2 logaddexp pow.Scalar pow.Tensor_Scalar
        pow.Tensor_Tensor rsqrt sin sqrt tan tanh sigmoid""",
    "activations": """
        celu elu gelu glu hardsigmoid hardswish hardtanh leaky_relu log_sigmoid log_softmax.int
        _log_softmax mish relu relu6 selu silu softmax.int _softmax softplus threshold
        _safe_softmax""",
    "norms": """
        group_norm layer_norm native_group_norm native_layer_norm rms_norm linalg_vector_norm
        norm.ScalarOpt_dim""",
    "reductions": """
        all all.dim amax amin any any.dim argmax argmin cumprod cumsum logcumsumexp logsumexp max
        max.dim mean mean.dim min min.dim prod prod.dim_int std.correction std.dim sum
        sum.dim_IntList topk sort sort.stable argsort argsort.stable var.correction var.dim""",
    "comparisons": """
        bitwise_and.Scalar bitwise_and.Tensor bitwise_not bitwise_or.Scalar bitwise_or.Tensor
        bitwise_xor.Scalar bitwise_xor.Tensor bitwise_left_shift.Tensor_Scalar
        bitwise_right_shift.Tensor_Scalar eq.Scalar eq.Tensor ge.Scalar ge.Tensor gt.Scalar
        gt.Tensor isfinite isinf isnan le.Scalar le.Tensor logical_and logical_not logical_or
        logical_xor lt.Scalar lt.Tensor masked_fill.Scalar masked_fill.Tensor ne.Scalar ne.Tensor
        nan_to_num where.Scalar where.ScalarOther where.ScalarSelf where.self""",
    "shapes": """
        alias broadcast_tensors broadcast_to cat chunk clone concat concatenate constant_pad_nd contiguous detach
        diagonal diff expand expand_as flatten.using_ints flip movedim.int movedim.intlist narrow
        pad permute pixel_shuffle repeat repeat_interleave.self_int reshape roll select.int
        slice.Tensor split.Tensor split.sizes split_with_sizes squeeze squeeze.dim squeeze.dims
        stack swapaxes t transpose.int tril triu unbind.int unflatten.int unfold unsqueeze
        _unsafe_view view view_as reshape_as""",
    "indexing": """
        bucketize.Tensor embedding gather index.Tensor index_add index_fill.int_Scalar index_copy
        index_put index_select masked_scatter one_hot scatter.src scatter.value scatter_add
        scatter_reduce.two searchsorted.Tensor select_scatter slice_scatter take_along_dim""",
    "creation": """
        arange arange.start arange.start_step eye eye.m full full_like linspace
        new_full new_ones new_zeros ones ones_like scalar_tensor zeros zeros_like""",
    "casts": "_to_copy copy to.dtype to.other type_as",
    "convolution": "avg_pool1d conv1d conv1d.padding conv2d conv2d.padding convolution",
    "sizes": "sym_size.int",
}
# What torch.export writes besides, and passes take away: at level ATEN only.
_EXPORTED = """
    copy_ detach_ dropout dropout_ empty.memory_format empty_like fill_.Scalar lift_fresh_copy mT new_empty numpy_T
    to.device to.dtype_layout zero_ __and__.Tensor __or__.Tensor complex polar view_as_complex view_as_real
    real imag _assert_tensor_metadata scaled_dot_product_attention"""
OURS = (
    "attention",
    "window_slots",
    "window_mask",
    "window_bias",
    "kept_attention",
    "window_attention",
    "write_slots",
    "short_conv",
    "l2norm",
    "delta_rule",
    "delta_rule_read",
    "replay",
)
# What passes/lower finds: at level LOWERED only. Kernels of GPUs alone have use for the latter.
LOWERED = ("rms_norm", "rotary", "linears")
FUSED = ("masked_l2norm", "gates", "mixed", "gated_norm")
SIZE_OPERATORS: dict[str, Callable[..., Any]] = {
    "sym.add": python.add,
    "sym.sub": python.sub,
    "sym.mul": python.mul,
    "sym.floordiv": python.floordiv,
    "sym.mod": python.mod,
    "sym.neg": python.neg,
}
_PLAIN: dict[str, Callable[..., Any]] = {**SIZE_OPERATORS, "getitem": python.getitem}


def operator_name(target: Any) -> str:
    """The text form's name of an operator.

    >>> operator_name(torch.ops.aten.linear.default), operator_name(torch.ops.aten.add.Tensor)
    ('aten.linear', 'aten.add.Tensor')

    Raises SleepcError for anything but an operator.
    """
    if isinstance(target, OpOverload):
        return str(target).removesuffix(".default")
    for name, function in _PLAIN.items():
        if function is target:
            return name
    raise SleepcError(f"not an operator: {target!r}")


def operator(name: str, level: str) -> Callable[..., Any]:
    """The operator of a name at a level.

    Raises SleepcError if the level's table does not list the name: nothing else is looked up.
    """
    if level not in TEXT_LEVELS:
        raise SleepcError(f"unknown level {level}", fix=f"Levels: {', '.join(TEXT_LEVELS)}.")
    more = {"ATEN": exported_table, "LOWERED": lowered_table}.get(level)
    found = table().get(name) or (more().get(name) if more else None)
    if found is None:
        raise SleepcError(
            f"unknown operator {name[:80]}",
            fix=f"sleepc/ir/levels.py lists the operators of level {level}.",
        )
    return found


def is_allowed(target: Any, level: str) -> bool:
    """May a graph at this level call `target`?"""
    if level == "ATEN":
        return target in _PLAIN.values() or (isinstance(target, OpOverload) and not mutates(target))
    return target in _allowed() or (level == "LOWERED" and target in lowered_table().values())


def mutates(target: Any) -> bool:
    """Does the operator's schema say that it writes to an argument?"""
    return isinstance(target, OpOverload) and bool(target._schema.is_mutable)


def writes_state(target: Any) -> bool:
    """Does a backend carry this operator out by writing into its first argument, if it can?"""
    return target is table()["sleepc.write_slots"]


def makes_view(target: Any) -> bool:
    """May the operator's result share memory with its first argument?"""
    if not isinstance(target, OpOverload):
        return target is python.getitem
    return any(result.alias_info is not None for result in target._schema.returns)


@cache
def table() -> dict[str, Callable[..., Any]]:
    """Names and operators that all levels have."""
    # on first use: the operators are a sibling that registers itself with torch
    importlib.import_module("sleepc.ops")
    found = dict(_PLAIN)
    for names in _ATEN.values():
        found.update({f"aten.{name}": _overload("aten", name) for name in names.split()})
    found.update({f"sleepc.{name}": _overload("sleepc", name) for name in OURS})
    return found


@cache
def lowered_table() -> dict[str, Callable[..., Any]]:
    """What level LOWERED has besides."""
    importlib.import_module("sleepc.ops")
    return {f"sleepc.{name}": _overload("sleepc", name) for name in (*LOWERED, *FUSED)}


@cache
def exported_table() -> dict[str, Callable[..., Any]]:
    """What level ATEN has besides: also the operators of the table that write to their first argument instead."""
    found: dict[str, Callable[..., Any]] = {f"aten.{name}": _overload("aten", name) for name in _EXPORTED.split()}
    for name in table():
        space, _, rest = name.partition(".")
        packet, _, overload = rest.partition(".")
        twin = getattr(getattr(torch.ops.aten, f"{packet}_", None), overload or "default", None)
        if space == "aten" and twin is not None:
            found[operator_name(twin)] = twin
    return found


@cache
def _allowed() -> frozenset[Callable[..., Any]]:
    return frozenset(table().values())


def _overload(namespace: str, name: str) -> OpOverload:
    packet, _, overload = name.partition(".")
    found = getattr(getattr(getattr(torch.ops, namespace), packet), overload or "default")
    assert isinstance(found, OpOverload), name
    return found
