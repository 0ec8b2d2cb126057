"""The seam that transformers offers: attention goes through one function, masks through another.

While the seam is open, every attention layer of a Hugging Face model calls `sleepc::attention` with q, k, v after bias,
norm and positions, K/V heads not expanded, and every mask is built by plain tensor operations, so that it lands in the
graph, where it is evaluated later (passes/front/classify_masks.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

import sleepc.ops  # noqa: F401  (registers sleepc::attention)
from sleepc.errors import Refusal, UsageError

NAME = "sleepc"
EXPERTS = "batched_mm"  # gathers and multiplies every token's experts; the other ways do not export (docs/log.md)
# What the function understands, and what cannot change the numbers of inference.
UNDERSTOOD = {"softcap", "s_aux", "sliding_window", "is_causal", "indices", "position_bias"}
PICKED: ContextVar[list[str]] = ContextVar("what may tell attention layers that run which keys to look at")
HARMLESS = {
    "position_ids",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "return_dict",
    "cache_position",
    "past_key_values",
    "position_embeddings",
    "logits_to_keep",
}


def attention(  # noqa: PLR0913 (transformers calls it with these)
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function: q [B,Hq,T,D], k, v [B,Hkv,T,D] -> ([B,T,Hq,D], no weights)."""
    unknown = {k for k, v in kwargs.items() if v is not None and k not in UNDERSTOOD | HARMLESS}
    if unknown:
        raise Refusal(
            "UNKNOWN_OPTION",
            f"an attention layer is called with {', '.join(sorted(unknown))}, which sleepc does not know",
            where=type(module).__name__,
            fix="Please report the model: converting it without this option would change its results.",
        )
    if attention_mask is None:
        raise Refusal("UNKNOWN_MASK", "an attention layer got no mask", where=type(module).__name__)
    if isinstance(scaling, complex):  # the root of a number below zero
        what = f"an attention layer scales its scores by {scaling}, which is not a real number"
        raise UsageError(what, where=type(module).__name__, fix="Correct the model's configuration.")
    if kwargs.get("indices") is not None:  # [B,T,n]: all keys, up to n of them (picked_keys.py)
        PICKED.get([]).append("indices")
    if attention_mask.is_floating_point():  # not as it was made below: the model has put numbers in
        PICKED.get([]).append("numbers")
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    cap = kwargs.get("softcap")
    if cap == 0:  # for the operator, 0 is no cap
        what = "an attention layer caps its scores at 0, after which all are equal"
        raise UsageError(what, where=type(module).__name__, fix="Correct the model's configuration (null is no cap).")
    bias = kwargs.get("position_bias")
    if bias is not None:  # [B,Hq,T,T]
        masked = attention_mask.dtype == torch.bool
        attention_mask = torch.where(attention_mask, bias, -torch.inf) if masked else attention_mask + bias
    out = torch.ops.sleepc.attention(
        query, key, value, attention_mask, kwargs.get("s_aux"), scale=scale, softcap=float(cap or 0)
    )
    return out.transpose(1, 2).contiguous(), None  # as transformers' own functions: models call .view on it


def mask(
    batch_size: int, q_length: int, kv_length: int, *, mask_function: Any, device: Any = "cpu", **_: Any
) -> torch.Tensor:
    """transformers' mask function: the mask as a bool tensor [B,1,T,T], True if a query sees a key."""
    rows = torch.arange(batch_size, device=device)[:, None, None, None]
    heads = torch.arange(1, device=device)[None, :, None, None]
    queries = torch.arange(q_length, device=device)[None, None, :, None]
    keys = torch.arange(kv_length, device=device)[None, None, None, :]
    seen: torch.Tensor = mask_function(rows, heads, queries, keys)
    return seen


@contextmanager
def open_seam(model: nn.Module) -> Iterator[None]:
    """Route the attention of a Hugging Face model through sleepc for the duration, and its experts through products of
    fixed shape; other modules are left as they are. (The other ways to run experts ask which of them got tokens: their
    shapes depend on values, and a graph has none of that.)
    """
    with _chosen(model, "attn", NAME, _register), _chosen(model, "experts", EXPERTS):
        yield


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, mask)


@contextmanager
def _chosen(model: nn.Module, kind: str, name: str, register: Callable[[], None] = lambda: None) -> Iterator[None]:
    """The model with this implementation of a kind, which `register` makes known; itself if it offers no choice."""
    choose: Any = getattr(model, f"set_{kind}_implementation", None)
    offered: Any = getattr(model, f"_can_set_{kind}_implementation", None)
    if choose is None or offered is None or not offered():
        yield
        return
    register()
    before = getattr(model.config, f"_{kind}_implementation")
    choose(name)
    try:
        yield
    finally:
        choose(before)
