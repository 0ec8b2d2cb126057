"""A family's configuration made small: few layers of every kind, small sizes, short windows, ids inside the vocabulary.

Sizes are set by a table of the names that transformers' configurations have in common; what a table cannot know stands
in OVERRIDES.
"""

from __future__ import annotations

from typing import Any

VOCAB = 61
LAYERS = 4
WIDTH = 64
HEADS = 4
WINDOW = 5
POSITIONS = 96  # longer than any stream that is read, with room for tables that begin at an offset

_LAYER_COUNTS = (
    "num_hidden_layers n_layer n_layers num_layers decoder_layers num_decoder_layers encoder_layers "
    "num_encoder_layers depth num_blocks num_layers_per_stack"
)
LAYER_COUNTS = tuple(_LAYER_COUNTS.split())
_SIZES: tuple[tuple[int, str], ...] = (
    (VOCAB, "vocab_size vocab_size_per_layer_input unpadded_vocab_size decoder_vocab_size"),
    (
        WIDTH,
        "hidden_size d_model n_embd dim_model emb_dim embedding_size embedding_dim word_embed_proj_dim "
        "hidden_size_global backbone_hidden_size lru_width out_hidden_size "
        "input_embedding_size output_embedding_size vision_output_dim "
        "adapter_in_dim adapter_out_dim adapter_input_size",
    ),
    (
        HEADS,
        "num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads "
        "encoder_attention_heads num_decoder_attention_heads num_encoder_attention_heads swa_num_attention_heads "
        "linear_num_heads linear_num_value_heads index_n_heads mamba_n_heads mamba_num_heads n_mamba_heads",
    ),
    (
        WIDTH // HEADS,
        "head_dim swa_head_dim global_head_dim dim_head d_head d_kv kv_channels "
        "attention_head_size v_head_dim query_pre_attn_scalar linear_head_dim linear_key_head_dim "
        "linear_value_head_dim index_head_dim hidden_size_per_layer_input d_rel laurel_rank",
    ),
    (
        96,
        "intermediate_size n_inner dim_ff dff ffn_dim d_ff d_inner decoder_ffn_dim encoder_ffn_dim "
        "ffn_hidden_size feed_forward_size intermediate_size_mlp dense_intermediate_size mlp_dim",
    ),
    (
        48,
        "moe_intermediate_size expert_ffn_hidden_size shared_expert_intermediate_size shared_intermediate_size "
        "shared_experts_intermediate_size moe_shared_expert_intermediate_size",
    ),
    (12, "index_topk keep_window_size"),  # as many keys as the window and the sinks, or more
    (24, "qk_head_dim q_lora_rank kv_lora_rank o_lora_rank"),
    (16, "qk_nope_head_dim"),
    (
        8,
        "qk_rope_head_dim rotary_dim mamba_d_state ssm_state_size state_size router_hidden_size "
        "chunk_size mamba_chunk_size time_step_rank mamba_dt_rank loop_gate_rank gated_norm_rank adapter_rank",
    ),
    (
        WINDOW,
        "sliding_window sliding_window_size window_size attention_window_size attention_chunk_size "
        "local_attention_window_len",
    ),
    (4, "num_experts n_routed_experts num_local_experts moe_num_experts zero_expert_num"),
    (
        2,
        "num_key_value_heads num_kv_heads kv_n_heads swa_num_key_value_heads linear_num_key_heads "
        "num_global_key_value_heads num_query_groups num_experts_per_tok num_experts_per_token moe_topk moe_top_k "
        "moe_k n_groups n_group num_expert_group",
    ),
    (6, "rel_extent"),
    (1, "first_k_dense_replace num_dense_layers moe_layer_start_index topk_group"),
    (
        POSITIONS,
        "max_position_embeddings n_positions n_ctx max_seq_len max_target_positions model_max_length context_length",
    ),
)
SCALES = {"attention_multiplier": 0.25}  # as 1 / sqrt(head_dim): larger ones leave attention nothing to weigh
SIZES = {name: size for size, names in _SIZES for name in names.split()}
SIZES |= dict.fromkeys(LAYER_COUNTS, LAYERS)
KV_HEADS = ("num_key_value_heads", "num_query_groups")  # as many as heads, or half of them, as they were
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_INDEXER = {
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 12,
    "indexer_compress_ratio": 2,
}
_DOTS3 = {"num_attention_heads": HEADS, "num_key_value_heads": HEADS, "kv_lora_rank": 24, "qk_nope_head_dim": 8}
_HASHES: dict[str, Any] = {"encoder_hash_byte_group_vocab": 64}
OVERRIDES: dict[str, dict[str, Any]] = {
    # None by default, where the code needs a number
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "ministral": {"head_dim": 16},
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp": {"text_config": _INDEXER},
    "qwen4_exp_text": _INDEXER,
    "xlm": {"causal": True},
    "xmod": {"default_language": "en_XX"},
    # four layers of the default configuration would have no attention
    "bamba": {"attn_layer_indices": [1, 3]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "inkling_text": {"log_scaling_n_floor": 4},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    # sizes that are tied to each other
    "blt": {name: _HASHES for name in ("patcher_config", "encoder_config", "decoder_config", "global_config")}
    | _HASHES,
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
    "dots3_note": {"text_config": {"per_layer_config": {2: _DOTS3, 3: _DOTS3}}},
    "dots3_note_text": {"per_layer_config": {2: _DOTS3, 3: _DOTS3}},
    "dory": {"n_input_layers": 1, "n_recurrent_layers": 2, "n_output_layers": 1},
    "gemma3n_text": {
        "num_hidden_layers": 6,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
        "intermediate_size": [96] * 6,
        "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0, 0.0, 0.0],
    },
    "hrm_text": {"num_layers_per_stack": 1, "num_hidden_layers": 6, "H_cycles": 2, "L_cycles": 2},
    "mamba2": {"num_heads": 8},
    "reformer": {
        "axial_pos_shape": (8, POSITIONS // 8),
        "axial_pos_embds_dim": (16, WIDTH - 16),
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
    },
    "zamba": {"layers_block_type": ["linear_attention", "hybrid"] * 2},
    "zamba2": {"mamba_headdim": 32},
}


def small_config(family: str) -> Any:
    """transformers' configuration of a model type, made small."""
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[family]
    overrides = OVERRIDES.get(family, {})
    made = kind(**_merged(small_fields(kind()), overrides))
    if hasattr(made, "is_decoder") and not made.is_decoder:
        made.is_decoder = True  # BERT and its kin are language models as decoders only
    return made


def small_fields(config: Any) -> dict[str, Any]:
    """The fields of a configuration that change, with their small values; configurations inside it as dicts."""
    fields = {name: value for name, value in vars(config).items() if not name.startswith("_")}
    chosen = _chosen_layers(fields)
    found: dict[str, Any] = {}
    for name, value in fields.items():
        small = _small(name, value, fields, chosen)
        if small is not None:
            found[name] = small
    return found


def _small(name: str, value: Any, fields: dict[str, Any], chosen: list[int]) -> Any:
    """A field's small value; None where it stays as it is."""
    if hasattr(value, "to_dict"):
        return small_fields(value)
    if isinstance(value, bool) or value is None:
        return None
    if name.endswith(("token_id", "token_index")):
        return _inside_vocabulary(value)
    if name in LAYER_COUNTS:
        return len(chosen)
    if name in SCALES:
        return SCALES[name]
    if name in KV_HEADS and value == fields.get("num_attention_heads"):
        return HEADS
    if name == "head_dim" and value == fields.get("qk_rope_head_dim"):
        return SIZES["qk_rope_head_dim"]
    if name in SIZES and isinstance(value, int):
        return min(value, SIZES[name]) if value else None
    if isinstance(value, list | tuple) and len(value) == _count_of_layers(fields):
        return list(range(len(chosen))) if list(value) == list(range(len(value))) else [value[i] for i in chosen]
    return None


def _inside_vocabulary(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_inside_vocabulary(v) for v in value]
    return min(value, VOCAB - 1) if isinstance(value, int) else value


def _count_of_layers(fields: dict[str, Any]) -> int | None:
    return next((fields[name] for name in LAYER_COUNTS if isinstance(fields.get(name), int)), None)


def _chosen_layers(fields: dict[str, Any]) -> list[int]:
    """Which layers stay: the first of every kind that the lists of the configuration tell apart, and the first few."""
    count = _count_of_layers(fields)
    if count is None:
        return list(range(LAYERS))
    lists = [v for v in fields.values() if isinstance(v, list | tuple) and len(v) == count]
    lists = [v for v in lists if list(v) != list(range(count))]
    first: dict[str, int] = {}
    for i in range(count):
        first.setdefault(repr([v[i] for v in lists]), i)
    chosen = list(first.values())[:LAYERS]
    rest = [i for i in range(count) if i not in chosen]
    return sorted(chosen + rest[: max(LAYERS - len(chosen), 0)])


def _merged(fields: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """`fields` with `overrides`, dict by dict; an override of None removes nothing: it is the field's value."""
    found = dict(fields)
    for name, value in overrides.items():
        inner = found.get(name)
        found[name] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return found
