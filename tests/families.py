"""Tiny random models of every family in scope, captured once per process. The window is 8, own windows 5 and 13."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from sleepc.api import capture, logits_of
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.pipeline import rewrite_stages
from sleepc.passes.runner import run_stages
from sleepc.recipe import Recipe, make_recipe

VOCAB = 61
WINDOW = 8
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def _llama(**options: Any) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**SHAPE, **options))


def _mistral(window: int) -> nn.Module:
    from transformers import MistralConfig, MistralForCausalLM

    return MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=window))


def _qwen2() -> nn.Module:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(Qwen2Config(**SHAPE))


def _qwen3() -> nn.Module:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=16))


def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    options: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=3, n_head=4, n_positions=24, **options))


def _gemma2() -> nn.Module:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    options: dict[str, Any] = {"head_dim": 8, "sliding_window": 5, "query_pre_attn_scalar": 8}
    options["attn_logit_softcapping"] = 2.0
    return Gemma2ForCausalLM(Gemma2Config(**SHAPE, **options))


def _nanogpt(flash: bool) -> nn.Module:
    from examples.nanogpt import GPT

    return GPT(vocab=VOCAB, width=32, heads=4, blocks=3, context=24, flash=flash)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: _llama(tie_word_embeddings=False),
    "llama-tied": lambda: _llama(tie_word_embeddings=True),
    "mistral-5": lambda: _mistral(5),
    "mistral-13": lambda: _mistral(13),
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gpt2": _gpt2,
    "gemma2": _gemma2,
    "nanogpt": lambda: _nanogpt(flash=True),
    "nanogpt-spelled": lambda: _nanogpt(flash=False),
}


@dataclass(frozen=True)
class Family:
    """A module in float64 with weights large enough for errors to show, and its program at level CANONICAL."""

    module: nn.Module
    canonical: ProgramGraphs

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """The original's logits, by its own forward with eager attention."""
        return logits_of(self.module)(tokens)

    def convert(self, **options: Any) -> tuple[ProgramGraphs, Recipe]:
        """The program at level STEP, with a window of WINDOW unless `options` say otherwise."""
        recipe = make_recipe({"window": WINDOW, "sinks": 2, **options})
        return run_stages(self.canonical, rewrite_stages(recipe, len(self.canonical.layout))), recipe


def make_module(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A module of the family with random weights, the same in every process."""
    torch.manual_seed(7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what transformers says of tiny configurations
        module = MODELS[name]()
    choose: Any = getattr(module, "set_attn_implementation", None)
    if choose is not None:
        choose("eager")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            # Vectors are gains and biases: around what they were. Matrices get entries that make attention uneven.
            parameter.copy_(parameter + 0.3 * noise if parameter.dim() < 2 else 0.3 * noise)
    return module.to(dtype).eval()


@cache
def family(name: str) -> Family:
    """The family, captured."""
    module = make_module(name)
    return Family(module, capture(module))
