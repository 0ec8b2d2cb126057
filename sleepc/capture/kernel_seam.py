"""The seam of recurrent layers: transformers' modelling files call convolutions and recurrences through globals of
theirs, which they decorate with `use_kernel_func_from_hub_with_fallback(CONTRACT, PACKAGE)`.

What such a function takes follows from its contract's name. While the seam is open, those that are known become
`sleepc::short_conv` and `sleepc::delta_rule` over a call from an empty state (passes/rewrite/carry_states.py gives them
one), whatever package is installed. A contract without a rule is refused when it is called.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FunctionType
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sleepc.ops  # noqa: F401  (registers the operators)
from sleepc.capture.seam import HARMLESS
from sleepc.errors import Refusal
from sleepc.ir.types import wide_dtype


def causal_conv1d_fn(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, **others: Any
) -> Tensor:
    """x [B,C,T], weight [C,K], bias [C]: activation(causal convolution + bias) [B,C,T]."""
    _refuse_unknown("causal_conv1d_fn", others)
    wide, (rows, channels, tokens) = wide_dtype(x.dtype), x.shape
    tail = x.new_zeros(rows, channels, weight.shape[1] - 1)
    lengths = torch.full((rows,), tokens, dtype=torch.int64, device=x.device)
    y: Tensor = torch.ops.sleepc.short_conv(x.transpose(1, 2).to(wide), weight, tail, lengths)[0]
    if bias is not None:
        y = y + bias.to(wide)
    return _activated(y, activation).to(x.dtype).transpose(1, 2)


def chunk_gated_delta_rule(  # noqa: PLR0913 (transformers calls it with these)
    query: Tensor,
    key: Tensor,
    value: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    scale: float | None = None,
    chunk_size: int = 64,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    **others: Any,
) -> tuple[Tensor, None]:
    """query, key [B,T,Hk,dk], value [B,T,Hv,dv], g, beta [B,T,Hv], g also [B,T,Hv,dk] -> [B,T,Hv,dv] (Gated Delta
    Networks, arXiv 2412.06464; a decay for each channel: Kimi Linear, arXiv 2510.26692). Hv / Hk neighbours of the
    value heads share a key head.
    """
    del chunk_size  # how many tokens are computed at once
    taken = {"initial_state": initial_state, "output_final_state": output_final_state or None}
    _refuse_unknown("a delta rule", others | taken)
    wide, copies = wide_dtype(value.dtype), value.shape[2] // key.shape[2]
    q, k = (x.to(wide).repeat_interleave(copies, 2) if copies > 1 else x.to(wide) for x in (query, key))
    if use_qk_l2norm_in_kernel:
        q, k = torch.ops.sleepc.l2norm(q), torch.ops.sleepc.l2norm(k)
    scale = key.shape[3] ** -0.5 if scale is None else float(scale)
    out = _recur("gated_delta", (q, k, value.to(wide), g.to(wide), beta.to(wide)), scale)
    return out.to(query.dtype), None


def mamba_chunk_scan_combined(  # noqa: PLR0913 (transformers calls it with these)
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
    **others: Any,
) -> Tensor:
    """x [B,T,H,P], dt [B,T,H], A, D, dt_bias [H], B and C [B,T,G,N], one group for H / G neighbours -> [B,T,H,P]
    (Mamba-2, arXiv 2405.21060): S = exp(Δ A) S + B (x) Δ x, y = Sᵀ C + D x, Δ = softplus(dt + dt_bias) within dt_limit.
    """
    del chunk_size  # how many tokens are computed at once
    taken = {"initial_states": initial_states, "z": z, "return_final_states": return_final_states or None}
    _refuse_unknown("mamba_chunk_scan_combined", others | taken)
    wide, copies = wide_dtype(x.dtype), x.shape[2] // B.shape[2]
    step = dt if dt_bias is None else dt + dt_bias.to(dt.dtype)
    step = torch.clamp(F.softplus(step) if dt_softplus else step, *dt_limit).to(wide)
    k, q = (y.to(wide).repeat_interleave(copies, 2) if copies > 1 else y.to(wide) for y in (B, C))
    v, g = x.to(wide) * step[..., None], A.to(wide) * step
    out = _recur("gated", (q, k, v, g, torch.ones_like(g)), 1.0)
    return out if D is None else out + D.to(wide)[..., None] * x.to(wide)


def selective_scan_fn(  # noqa: PLR0913 (transformers calls it with these)
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    use_mambapy: bool = False,
    use_associative_scan: bool = False,
) -> Tensor:
    """u, delta, z [B,C,T], A [C,N], B and C [B,N,T], D, delta_bias [C] -> [B,C,T] (Mamba, arXiv 2312.00752): a head for
    each channel, whose keys B have a decay each and whose value is one number; y = (Sᵀ C + D u) silu(z).
    """
    del use_mambapy, use_associative_scan  # how it is computed
    # without softplus a step may be negative and its decay grow, which delta_rule does not compute
    taken = {"return_last_state": return_last_state or None, "delta_softplus=False": (not delta_softplus) or None}
    _refuse_unknown("selective_scan_fn", taken)
    wide, (channels, places) = wide_dtype(u.dtype), A.shape
    step = delta if delta_bias is None else delta + delta_bias.to(delta.dtype)[:, None]
    step = F.softplus(step).to(wide).transpose(1, 2)
    x = u.to(wide).transpose(1, 2)
    q, k = (y.to(wide).transpose(1, 2)[:, :, None].expand(-1, -1, channels, places) for y in (C, B))
    v, g = (step * x)[..., None], step[..., None] * A.to(wide)
    y = _recur("gated", (q, k, v, g, torch.ones_like(step)), 1.0)[..., 0]
    y = y if D is None else y + D.to(wide) * x
    y = y.transpose(1, 2)
    return y.to(u.dtype) if z is None else (y * F.silu(z)).to(u.dtype)


def _not_in_one(*_: Any, **__: Any) -> None:
    """A whole layer in one call: None asks the model to call its parts one by one."""


def _step_of_a_cache(*_: Any, **__: Any) -> NoReturn:
    raise Refusal("RECURRENT", "a recurrent layer continues from a cache, in a call that was given none")


CONTRACTS: dict[str, Callable[..., Any]] = {
    "causal_conv1d_fn": causal_conv1d_fn,
    "chunk_gated_delta_rule": chunk_gated_delta_rule,
    "chunk_kda": chunk_gated_delta_rule,
    "mamba_chunk_scan_combined": mamba_chunk_scan_combined,
    "mamba_split_conv1d_scan_combined": _not_in_one,
    "mamba_inner_fn": _not_in_one,
    "selective_scan_fn": selective_scan_fn,
    "causal_conv1d_update": _step_of_a_cache,
    "fused_recurrent_gated_delta_rule": _step_of_a_cache,
    "fused_recurrent_kda": _step_of_a_cache,
    "selective_state_update": _step_of_a_cache,
}


def _recur(rule: str, written: tuple[Tensor, ...], scale: float) -> Tensor:
    """q, k [B,T,H,dk], v [B,T,H,dv], g [B,T,H] or [B,T,H,dk], beta [B,T,H] -> [B,T,H,dv], in one dtype."""
    q, k, v, g, beta = (x.transpose(1, 2) for x in written)
    state = k.new_zeros(k.shape[0], k.shape[1], k.shape[3], v.shape[3])
    out: Tensor = torch.ops.sleepc.delta_rule(q, k, v, g, beta, [state], rule=rule, scale=scale)[0]
    return out.transpose(1, 2).contiguous()  # models call .view on it


def _activated(y: Tensor, activation: str | None) -> Tensor:
    from transformers.activations import ACT2FN

    if activation is None:
        return y
    if activation not in ACT2FN:
        _refuse_unknown("causal_conv1d_fn", {f"activation={activation}": True})
    made: Tensor = ACT2FN[activation](y)
    return made


def _refuse_unknown(what: str, options: dict[str, Any]) -> None:
    """Raises Refusal(UNKNOWN_OPTION) with the names of options that say something and are not understood."""
    unknown = sorted(name for name, value in options.items() if value is not None and name not in HARMLESS)
    if unknown:
        raise Refusal(
            "UNKNOWN_OPTION",
            f"a recurrent layer calls {what} with {', '.join(unknown)}, which sleepc does not know",
            fix="Please report the model: converting it without this option would change its results.",
        )


def contract_of(value: object) -> str:
    """The contract of a function that was decorated with `use_kernel_func_from_hub_with_fallback`; "" of others."""
    if isinstance(value, nn.Module):  # which the package `kernels` makes of it, if that is installed
        return str(getattr(value, "kernel_layer_name", ""))
    if isinstance(value, FunctionType) and value.__closure__:
        held = dict(zip(value.__code__.co_freevars, value.__closure__, strict=True))
        if {"func_name", "package"} <= held.keys():
            return str(held["func_name"].cell_contents)
    return ""


def open_kernel_seam(model: nn.Module) -> AbstractContextManager[None]:
    """Within it the modelling files of the model's layers call CONTRACTS."""
    return _calling(model, lambda value: _bound(contract_of(value), CONTRACTS.get(contract_of(value))))


def plain_kernels(model: nn.Module) -> AbstractContextManager[None]:
    """Within it they call transformers' own PyTorch functions: a package that is installed may want another device than
    the model's, and what the model computes is to be compared without it.
    """
    return _calling(model, _plain)


@contextmanager
def _calling(model: nn.Module, instead: Callable[[Any], Callable[..., Any] | None]) -> Iterator[None]:
    """Let the files call something instead of each decorated function, if there is, and put back what they called."""
    files = {type(part).__module__ for part in model.modules()}
    spaces = [vars(sys.modules[name]) for name in files if name in sys.modules]
    before = [(space, name, value) for space in spaces for name, value in space.items() if contract_of(value)]
    for space, name, value in before:
        space[name] = instead(value) or value
    try:
        yield
    finally:
        for space, name, value in before:
            space[name] = value


def _plain(value: Any) -> Callable[..., Any] | None:
    """What was decorated, which is given only the options that it names, as the decorator does."""
    function = getattr(value, "__wrapped__", None)
    if function is None:
        return None
    named = inspect.signature(function).parameters

    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **{name: x for name, x in kwargs.items() if name in named})

    return call


def _bound(name: str, contract: Callable[..., Any] | None) -> Callable[..., Any] | None:
    """A contract, if it is known, that says by name which arguments do not fit it."""
    if contract is None:
        return None
    signature = inspect.signature(contract)

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise Refusal("UNKNOWN_OPTION", f"a recurrent layer calls {name} otherwise than known: {error}") from error
        return contract(*bound.args, **bound.kwargs)

    return call
