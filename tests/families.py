"""Tiny random models of every family in scope, captured once per process. The window is 8, own windows 5 and 13.

Modules are made without a line of sleepc: tests/golden/same.py gives the same ones to two commits.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from sleepc.ir.program import ProgramGraphs
    from sleepc.recipe import Recipe

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


# Classes, and what their configurations have. A window or chunk of a layer's own is 5 tokens.
SMALL: dict[str, Any] = {**SHAPE, "num_hidden_layers": 2}
SPECIAL: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
FALCON: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
FALCON |= {"max_position_embeddings": 64, **SPECIAL}
OTHERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gemma3": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {**SMALL, "head_dim": 8, "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", {**SMALL, **SPECIAL}),
    "gpt-neox": (
        "GPTNeoXConfig",
        "GPTNeoXForCausalLM",
        {**SMALL, **SPECIAL, "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
    ),
    "gptj": (
        "GPTJConfig",
        "GPTJForCausalLM",
        {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 4, **SPECIAL},
    ),
    "opt": (
        "OPTConfig",
        "OPTForCausalLM",
        {**SMALL, **SPECIAL, "ffn_dim": 48, "word_embed_proj_dim": 32},
    ),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM", {**SMALL, **SPECIAL}),
    "granite": (
        "GraniteConfig",
        "GraniteForCausalLM",
        {
            **SMALL,
            "tie_word_embeddings": True,
            "embedding_multiplier": 2.0,
            "logits_scaling": 1.5,
            "residual_multiplier": 0.7,
            "attention_multiplier": 0.3,
        },
    ),
    "stablelm": ("StableLmConfig", "StableLmForCausalLM", {**SMALL, **SPECIAL, "use_parallel_residual": True}),
    "smollm3": ("SmolLM3Config", "SmolLM3ForCausalLM", {**SMALL, **SPECIAL, "no_rope_layers": [1, 0]}),
    "gpt-oss": (
        "GptOssConfig",
        "GptOssForCausalLM",
        {
            **SMALL,
            **SPECIAL,
            **EXPERTS,
            "head_dim": 8,
            "sliding_window": 5,
            "rope_parameters": {"rope_type": "default"},
        },
    ),
    "llama4": (
        "Llama4TextConfig",
        "Llama4ForCausalLM",
        {
            **SMALL,
            **SPECIAL,
            "intermediate_size_mlp": 48,
            "head_dim": 8,
            "num_local_experts": 2,
            "attention_chunk_size": 5,
            "no_rope_layers": [1, 0],
            "floor_scale": 4,
            "attn_scale": 0.5,
        },
    ),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", {**SMALL, **EXPERTS}),
    "qwen3-moe": (
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        {**SMALL, "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
    ),
    "bloom": (
        "BloomConfig",
        "BloomForCausalLM",
        {"vocab_size": VOCAB, "hidden_size": 32, "n_layer": 2, "n_head": 4, **SPECIAL},
    ),
    "falcon": ("FalconConfig", "FalconForCausalLM", {**FALCON, "alibi": False}),
    "deepseek-v3": (
        "DeepseekV3Config",
        "DeepseekV3ForCausalLM",
        {
            **{**SMALL, "num_key_value_heads": 4},
            **SPECIAL,
            "first_k_dense_replace": 2,
            "kv_lora_rank": 12,
            "q_lora_rank": 12,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 6,
            "v_head_dim": 8,
        },
    ),
    "qwen3-5": (
        "Qwen3_5TextConfig",
        "Qwen3_5ForCausalLM",
        {
            **SMALL,
            "layer_types": ["linear_attention", "full_attention"],
            "head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 6,
        },
    ),
    "jamba": (
        "JambaConfig",
        "JambaForCausalLM",
        {
            **SMALL,
            **SPECIAL,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "num_experts": 1,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
        },
    ),
    # queries add numbers to the scores of keys by distance, and keys and values have convolutions of their own
    "inkling": (
        "InklingTextConfig",
        "InklingForCausalLM",
        {
            **SMALL,
            "layer_types": ["hybrid_sliding", "hybrid"],
            "mlp_layer_types": ["dense", "dense"],
            "sliding_window_size": 5,
            "head_dim": 8,
            "swa_num_attention_heads": 4,
            "swa_num_key_value_heads": 2,
            "swa_head_dim": 8,
            "d_rel": 4,
            "rel_extent": 7,
            "log_scaling_n_floor": 4,
        },
    ),
    # two convolutions over the same padding, values that are read late, and a router that reads the layer before's
    "zaya": (
        "ZayaConfig",
        "ZayaForCausalLM",
        {
            **SMALL,
            **SPECIAL,
            "num_hidden_layers": 3,
            "layer_types": ["hybrid_sliding", "hybrid", "hybrid"],
            "sliding_window": 5,
            "head_dim": 8,
            "moe_intermediate_size": 16,
            "num_experts": 4,
            "router_hidden_size": 6,
            "attention_bias": True,
        },
    ),
    # the last two layers read the keys of the second one again; embeddings for each layer
    "gemma4": (
        "Gemma4TextConfig",
        "Gemma4ForCausalLM",
        {
            **SMALL,
            **SPECIAL,
            "num_hidden_layers": 4,
            "num_kv_shared_layers": 2,
            "layer_types": ["sliding_attention", "full_attention", "full_attention", "full_attention"],
            "sliding_window": 5,
            "head_dim": 8,
            "global_head_dim": 8,
            "vocab_size_per_layer_input": VOCAB,
            "hidden_size_per_layer_input": 6,
        },
    ),
    # four streams, embeddings for each layer; the last three layers read the keys of the first two again, by kind
    "gemma3n": (
        "Gemma3nTextConfig",
        "Gemma3nForCausalLM",
        {
            **SMALL,
            **SPECIAL,
            "num_hidden_layers": 5,
            "num_kv_shared_layers": 3,
            "layer_types": [f"{kind}_attention" for kind in ("sliding", "full", "sliding", "sliding", "full")],
            "sliding_window": 5,
            "head_dim": 8,
            "intermediate_size": [48] * 5,
            "activation_sparsity_pattern": [0.0] * 5,  # others need erfinv, which ONNX has not
            "vocab_size_per_layer_input": VOCAB,
            "hidden_size_per_layer_input": 6,
            "laurel_rank": 4,
        },
    ),
    # two layers that run in turns, and read what the other made rounds ago
    "hrm": ("HrmTextConfig", "HrmTextForCausalLM", {**SMALL, "num_hidden_layers": 1, "head_dim": 8, "L_cycles": 2}),
    "diffllama": ("DiffLlamaConfig", "DiffLlamaForCausalLM", {**SMALL, **SPECIAL}),
    "deepseek-v32": (
        "DeepseekV32Config",
        "DeepseekV32ForCausalLM",
        {
            **{**SMALL, "num_key_value_heads": 4},
            **SPECIAL,
            "first_k_dense_replace": 2,
            "kv_lora_rank": 12,
            "q_lora_rank": 12,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 6,
            "v_head_dim": 8,
            "index_n_heads": 2,
            "index_head_dim": 8,
            "index_topk": 17,
        },
    ),
    "doge": ("DogeConfig", "DogeForCausalLM", {**SMALL, **SPECIAL, "keep_window_size": 17}),
    "falcon-alibi": ("FalconConfig", "FalconForCausalLM", {**FALCON, "alibi": True}),
}


# To be refused: a loop over tokens, linear attention in plain operators.
LINEAR: dict[str, Any] = {**SMALL, "layer_types": ["linear_attention", "full_attention"]}
RECURRENT: dict[str, tuple[str, str, dict[str, Any]]] = {
    "rwkv": ("RwkvConfig", "RwkvForCausalLM", {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2}),
    "minimax": ("MiniMaxConfig", "MiniMaxForCausalLM", {**LINEAR, **SPECIAL, "num_local_experts": 2}),
}


def _other(name: str, **changes: Any) -> nn.Module:
    """A model of OTHERS or RECURRENT, with changes to its configuration."""
    import transformers

    config, model, options = (OTHERS | RECURRENT)[name]
    made: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**options | changes))
    return made


@dataclass(frozen=True)
class Family:
    """A module with weights large enough for errors to show, and its program at level CANONICAL."""

    module: nn.Module
    canonical: ProgramGraphs

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """The original's logits, by its own forward with eager attention."""
        from sleepc.verify.original import Original

        return Original(self.module)(tokens)

    def convert(self, **options: Any) -> tuple[ProgramGraphs, Recipe]:
        """The program at level STEP, with a window of WINDOW unless `options` say otherwise."""
        from sleepc.passes.analysis.hybrid import fit_hybrid
        from sleepc.passes.pipeline import rewrite_stages
        from sleepc.passes.runner import run_stages
        from sleepc.recipe import make_recipe

        recipe = fit_hybrid(make_recipe({"window": WINDOW, "sinks": 2, **options}), self.canonical)
        return run_stages(self.canonical, rewrite_stages(recipe, len(self.canonical.layout))), recipe


def make_module(name: str, dtype: torch.dtype = torch.float64, **changes: Any) -> nn.Module:
    """A module of the family with random weights, the same in every process; `changes` are for those of OTHERS."""
    torch.manual_seed(7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what transformers says of tiny configurations
        module = MODELS[name]() if name in MODELS else _other(name, **changes)
    for part in ("attn", "experts"):
        choose: Any = getattr(module, f"set_{part}_implementation", None)
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
def family(name: str, dtype: torch.dtype = torch.float64) -> Family:
    """The family, captured."""
    from sleepc.capturing import capture

    module = make_module(name, dtype)
    return Family(module, capture(module))


def memory_names(program: ProgramGraphs) -> set[str]:
    """The names of memories in the state of a program at level STEP."""
    from sleepc.ir.states import with_role

    specs = [with_role(program.classes[block.cls].states, "memory") for block in program.layout]
    return {f"{i}.{spec.name}" for i, each in enumerate(specs) for spec in each}
