"""What a GGUF file says of a model of Qwen3.5's class: sizes, layers, positions. Keys as llama.cpp reads them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sleepc.backends.gguf.tensors import ARCHITECTURE
from sleepc.backends.hf.engines import LINEAR, interval_of
from sleepc.errors import UsageError

YARN = ("factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow")
IGNORED = ("rope_type", "rope_theta", "partial_rotary_factor", "mrope_section", "mrope_interleaved")
RECURRENT = f"{ARCHITECTURE}.attention.recurrent_layers"  # gguf-py 0.19 has no name for it


def describe(writer: Any, config: Mapping[str, Any], kind: str) -> None:
    """Add all but the tokenizer. Raises UsageError for positions that llama.cpp does not have."""
    from gguf import GGML_QUANT_VERSION, GGUFType, LlamaFileType

    writer.add_type(GGUFType.MODEL)
    writer.add_file_type(LlamaFileType.ALL_F32 if kind == "F32" else LlamaFileType[f"MOSTLY_{kind}"])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    _layers(writer, config)
    _positions(writer, config)


def _layers(writer: Any, config: Mapping[str, Any]) -> None:
    values = config["linear_num_value_heads"]
    writer.add_ssm_conv_kernel(config["linear_conv_kernel_dim"])
    writer.add_ssm_state_size(config["linear_key_head_dim"])
    writer.add_ssm_group_count(config["linear_num_key_heads"])
    writer.add_ssm_time_step_rank(values)
    writer.add_ssm_inner_size(values * config["linear_value_head_dim"])
    kinds = config["layer_types"]
    writer.add_array(RECURRENT, [each == LINEAR for each in kinds])
    interval = interval_of(kinds)
    if interval is not None:  # of files without the list, older ones read this
        writer.add_full_attention_interval(interval)


def _positions(writer: Any, config: Mapping[str, Any]) -> None:
    from gguf import RopeScalingType

    rope = config["rope_parameters"]
    turned = int(config["head_dim"] * rope.get("partial_rotary_factor", 0.25))
    sections = rope.get("mrope_section") or [(turned // 2 + more) // 3 for more in (2, 1, 0)]
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(turned)
    writer.add_rope_dimension_sections([*sections, 0])
    kind = rope.get("rope_type", "default")
    left = [key for key in rope if key not in (*IGNORED, *(YARN if kind == "yarn" else ("factor",))) and rope[key]]
    if left:
        what = f"llama.cpp scales positions without {', '.join(left)}, which rope_type {kind} has here"
        raise UsageError(what, where="--to gguf", fix="Other runtimes may: --to hf.")
    if kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif kind == "yarn":
        _yarn(writer, config, rope)


def _yarn(writer: Any, config: Mapping[str, Any], rope: Mapping[str, Any]) -> None:
    """YaRN (arXiv 2309.00071). llama.cpp multiplies `attn_factor` by 1 + ln(factor) / 10, which is what transformers
    has where no attention_factor is given.
    """
    from gguf import RopeScalingType

    writer.add_rope_scaling_type(RopeScalingType.YARN)
    writer.add_rope_scaling_factor(rope["factor"])
    original = rope.get("original_max_position_embeddings") or config["max_position_embeddings"]
    writer.add_rope_scaling_orig_ctx_len(original)
    if rope.get("attention_factor") is not None:
        writer.add_rope_scaling_attn_factors(rope["attention_factor"] / (1 + 0.1 * math.log(rope["factor"])))
    if rope.get("beta_fast") is not None:
        writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
    if rope.get("beta_slow") is not None:
        writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])
