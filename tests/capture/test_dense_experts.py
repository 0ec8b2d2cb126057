"""Experts whose code asks which of them got tokens are exported, and compute what they compute."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sleepc.capture.dense_experts import dense_experts

TOKENS, WIDTH = 7, 6


def experts(family: str) -> nn.Module:
    """Those of a family: four, of which two are for a token; LongCat's fifth and sixth give back what they get."""
    import transformers

    options: dict[str, Any] = {"hidden_size": WIDTH}
    config: Any
    if family == "dbrx":
        config = transformers.DbrxConfig().ffn_config
        options |= {"ffn_hidden_size": 5, "moe_num_experts": 4}
        name = "DbrxExperts"
    else:
        config = transformers.LongcatFlashConfig()
        options |= {"expert_ffn_hidden_size": 5, "n_routed_experts": 4, "zero_expert_num": 2}
        name = "LongcatFlashExperts"
    for key, value in options.items():
        setattr(config, key, value)
    file = import_module(f"transformers.models.{family}.modeling_{family}")
    made: nn.Module = getattr(file, name)(config)
    generator = torch.Generator().manual_seed(1)
    for parameter in made.parameters():
        nn.init.normal_(parameter, generator=generator)
    return made.double()


class Routed(nn.Module):
    """x [N,d] and scores [N,E] -> [N,d]."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, scores: Tensor) -> Tensor:
        weights, index = scores.topk(2)
        made: Tensor = self.inner(x, index, weights)
        return made


@pytest.mark.parametrize(("family", "count"), [("dbrx", 4), ("longcat_flash", 6)])
def test_experts_for_all_tokens_are_the_experts(family: str, count: int) -> None:
    model = Routed(experts(family))
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(TOKENS, WIDTH, dtype=torch.float64, generator=generator)
    scores = torch.rand(TOKENS, count, dtype=torch.float64, generator=generator)
    sizes = {0: torch.export.Dim.DYNAMIC}
    with torch.no_grad():
        wanted = model(x, scores)
        with dense_experts(model):
            exported = torch.export.export(model, (x[:5], scores[:5]), dynamic_shapes=(sizes, sizes), strict=False)
        torch.testing.assert_close(exported.module()(x, scores), wanted, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(model(x, scores), wanted, rtol=0, atol=0)  # and are themselves again


class _Asking(nn.Module):
    """Experts that ask otherwise: those of `dense` nothing, of `where` of the index, of `hit` of [N,k]; those of
    `norm` as is known, but what they sum is not given back as it is.
    """

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.maps = nn.Parameter(torch.randn(4, WIDTH, WIDTH, generator=torch.Generator().manual_seed(1)).double())

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """As transformers' experts."""
        out = torch.zeros_like(hidden_states)
        if self.how == "dense":
            for i, weight in enumerate(self.maps):
                taken = (top_k_weights * (top_k_index == i)).sum(-1, keepdim=True)
                out = out + F.linear(hidden_states, weight) * taken
            return out
        mask = F.one_hot(top_k_index, 4)
        hit: Any = range(4) if self.how == "where" else mask.sum((0, 1)).nonzero()
        for i in hit:
            if self.how == "norm":
                place, token = torch.where(mask.permute(2, 1, 0)[i[0]])
            else:
                token, place = torch.where(top_k_index == i if self.how == "where" else mask[:, :, i[0]])
            made = F.linear(hidden_states[token], self.maps[i if self.how == "where" else i[0]])
            out.index_add_(0, token, made * top_k_weights[token, place, None])
        return out.tanh() if self.how == "norm" else out


@pytest.mark.parametrize("how", ["dense", "where", "hit", "norm"])
def test_experts_that_ask_otherwise_are_run_as_they_are(how: str) -> None:
    model = Routed(_Asking(how))
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(TOKENS, WIDTH, dtype=torch.float64, generator=generator)
    scores = torch.rand(TOKENS, 4, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        wanted = model(x, scores)
        with dense_experts(model):
            torch.testing.assert_close(model(x, scores), wanted, rtol=0, atol=0)
