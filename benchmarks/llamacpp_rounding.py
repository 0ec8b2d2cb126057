"""What llama.cpp rounds besides weights, in transformers: its error is then that of sums in another order.

A product with a matrix rounds what the matrix is multiplied by to the matrix's own kind, or, where that is in blocks,
to Q8_0: blocks of 32 numbers in eight bits (ggml's `vec_dot_type`). Keys and values are cached in half precision, which
makes queries and the weights of attention halves, too. Everything else is in float32 there, and in float64 here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

BLOCK, NAME = 32, "llama_cpp_rounding"


def to_half(x: Tensor) -> Tensor:
    """x, through float16."""
    return x.to(torch.float16).to(x.dtype)


def to_bfloat16(x: Tensor) -> Tensor:
    """x, through bfloat16, by way of float32, as ggml has it."""
    return x.to(torch.float32).to(torch.bfloat16).to(x.dtype)


def to_blocks(x: Tensor) -> Tensor:
    """x [.., n] through Q8_0: whole numbers of steps of a block's largest / 127; the step itself is a half."""
    blocks = x.to(torch.float32).unflatten(-1, (-1, BLOCK))
    step = blocks.abs().amax(-1, keepdim=True) / 127
    whole = torch.where(step > 0, blocks / step, 0).round()
    return (whole * to_half(step)).flatten(-2).to(x.dtype)


BY_KIND: Mapping[str, Callable[[Tensor], Tensor]] = {
    "F16": to_half,
    "BF16": to_bfloat16,
    "Q8_0": to_blocks,
    "Q4_0": to_blocks,
}


def round_activations(model: nn.Module, kinds: Mapping[str, str]) -> nn.Module:
    """The model in float64, with what llama.cpp rounds rounded: `kinds` are those of matrices by name."""
    model = model.double()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            change = BY_KIND.get(kinds.get(f"{name}.weight", kinds["model.embed_tokens.weight"]))  # a tied head's
            if change is not None:
                module.register_forward_pre_hook(partial(_changed, change))
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, eager_mask)
    model.set_attn_implementation(NAME)  # type: ignore[operator]
    return model


def _changed(change: Callable[[Tensor], Tensor], module: nn.Module, given: tuple[Tensor]) -> tuple[Tensor]:
    return (change(given[0]),)


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """[B, H, T, d] each -> [B, T, H, d]."""
    copies = query.shape[1] // key.shape[1]
    key, value = (to_half(each).repeat_interleave(copies, 1) for each in (key, value))
    scores = to_half(query) @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask.to(scores.dtype)
    return (to_half(scores.softmax(-1)) @ value).transpose(1, 2), None
