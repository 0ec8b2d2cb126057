"""Attention is found through the seam of transformers and, without it, in eager and SDPA form: the same sites."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from sleepc.capture.export import capture_module
from sleepc.capture.seam import open_seam
from sleepc.errors import Refusal
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.find_sites import Site, find_site
from sleepc.passes.pipeline import FRONT
from sleepc.passes.runner import run_stages
from tests.families import make_module

NODES = ("node", "q", "k", "v", "x")


def sites(program: ProgramGraphs) -> list[dict[str, object]]:
    found: list[Site] = [find_site(program.classes[b.cls].wake) for b in program.layout]
    return [{f.name: getattr(s, f.name) for f in dataclasses.fields(s) if f.name not in NODES} for s in found]


@pytest.mark.parametrize("form", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2", "mistral-5"])
def test_seam_and_rules_find_the_same(name: str, form: str) -> None:
    module = make_module(name, torch.float32)
    with open_seam(module):
        by_seam = run_stages(capture_module(module), FRONT)
    module.set_attn_implementation(form)  # type: ignore[operator]
    by_rules = run_stages(capture_module(module), FRONT)
    assert sites(by_rules) == sites(by_seam)


def test_the_seam_leaves_the_model_as_it_was() -> None:
    module = make_module("llama", torch.float32)
    before = module.config._attn_implementation  # type: ignore[union-attr]
    with open_seam(module):
        assert module.config._attn_implementation != before  # type: ignore[union-attr]
    assert module.config._attn_implementation == before  # type: ignore[union-attr]


def test_bidirectional_attention_is_refused() -> None:
    from torch.nn import functional as F

    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.out = torch.nn.Embedding(11, 16), torch.nn.Linear(16, 11)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            x = self.table(tokens)
            q = x.view(*tokens.shape, 2, 8).transpose(1, 2)
            y = F.scaled_dot_product_attention(q, q, q).transpose(1, 2).reshape(x.shape)
            return self.out(x + y)  # type: ignore[no-any-return]

    with pytest.raises(Refusal) as caught:
        run_stages(capture_module(Both()), FRONT)
    assert caught.value.code == "BIDIRECTIONAL"
