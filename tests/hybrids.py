"""A tiny hybrid written by hand: a convolution and a gated delta rule, called through transformers' decorator, before
attention or beside it.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.integrations.hub_kernels import use_kernel_func_from_hub_with_fallback

VOCAB, WIDTH = 11, 8
PACKAGE = "sleepc_test_kernels"


def _installed(*_: Any, **__: Any) -> Any:
    raise AssertionError("the installed package was called")


# As if a package of kernels were installed when a modelling file is imported.
_package: Any = ModuleType(PACKAGE)
_package.causal_conv1d_fn = _package.chunk_gated_delta_rule = _installed
sys.modules[PACKAGE] = _package


@use_kernel_func_from_hub_with_fallback("causal_conv1d_fn", PACKAGE)  # type: ignore[untyped-decorator]
def conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None) -> Tensor:
    """The package's."""
    raise AssertionError


@use_kernel_func_from_hub_with_fallback("chunk_gated_delta_rule", PACKAGE)  # type: ignore[untyped-decorator]
def rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, **_: Any) -> tuple[Tensor, None]:
    """The package's."""
    raise AssertionError


del sys.modules[PACKAGE]


class Hybrid(nn.Module):
    """tokens [B,T] -> logits [B,T,V]. `options` go to the rule; an `idle` model calls it twice, not when exported. With
    `beside` two layers have both mixers, else one has the recurrence and one attention. It was made for so many
    `positions`.
    """

    def __init__(
        self,
        options: dict[str, Any] | None = None,
        *,
        idle: bool = False,
        beside: bool = False,
        positions: int | None = None,
    ) -> None:
        super().__init__()
        self.config = SimpleNamespace(max_position_embeddings=positions)
        self.options, self.idle, self.beside = options or {}, idle, beside
        self.words = nn.Embedding(VOCAB, WIDTH)
        self.mixed = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.taps = nn.Parameter(torch.randn(3 * WIDTH, 3))
        self.gates = nn.Linear(WIDTH, 4)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits."""
        h = self.words(tokens)
        if self.beside:
            for _ in range(2):
                h = h + self._recurrent(h) + self._attention(h)
        else:
            h = h + self._recurrent(h)
            h = h + self._attention(h)
        return self.head(h)  # type: ignore[no-any-return]

    def _recurrent(self, h: Tensor) -> Tensor:
        mixed = conv(self.mixed(h).transpose(1, 2), self.taps, None, activation="silu").transpose(1, 2)
        q, k, v = (part.unflatten(2, (2, WIDTH // 2)) for part in mixed.split(WIDTH, 2))
        g, beta = self.gates(h).split(2, 2)
        given = (q, k, v, -F.softplus(g), beta.sigmoid())
        if self.idle and not torch.compiler.is_exporting():
            rule(*given)
        out: Tensor = rule(*given, use_qk_l2norm_in_kernel=True, **self.options)[0]
        return out.flatten(2)

    def _attention(self, h: Tensor) -> Tensor:
        q, k, v = (part.unflatten(2, (2, WIDTH // 2)).transpose(1, 2) for part in self.qkv(h).split(WIDTH, 2))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
