"""A GGUF file's metadata -> transformers' configuration: what its reader leaves out is carried over or refused.

transformers reads a handful of keys for each architecture and takes the defaults of the configuration's class for the
rest, which are those of one published model. Here every key of the architecture is looked at.
"""

from __future__ import annotations

import math
from typing import Any

from sleepc.errors import UsageError
from sleepc.hf.gguf_file import GgufFile, blocks_of
from sleepc.hf.gguf_rope import KEY, NEUTRAL, UNDERSTOOD, scaled_positions

EPSILON = ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps")
# Metadata key -> the names that configurations have for it; the first that a configuration has is set.
FIELDS: dict[str, tuple[str, ...]] = {
    "context_length": ("max_position_embeddings", "n_positions"),
    "embedding_length": ("hidden_size", "n_embd"),
    "block_count": ("num_hidden_layers", "n_layer"),
    "feed_forward_length": ("intermediate_size", "ffn_hidden_size", "n_inner"),
    "attention.head_count": ("num_attention_heads", "n_head"),
    "attention.head_count_kv": ("num_key_value_heads", "num_kv_heads"),
    "attention.layer_norm_rms_epsilon": EPSILON,
    "attention.layer_norm_epsilon": EPSILON,
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "logit_scale": ("logit_scale",),
    "embedding_scale": ("embedding_multiplier",),
    "residual_scale": ("residual_multiplier",),
    "attention.clamp_kqv": ("clip_qkv",),
    "expert_count": ("num_experts", "num_local_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "expert_weights_norm": ("norm_topk_prob",),
    "use_parallel_residual": ("use_parallel_residual",),
}
# Without these a class would take those of the one published model that it is named after.
NEEDED = ("context_length", "embedding_length", "block_count", "attention.head_count")
# Shapes of tensors tell these as well, and transformers refuses what does not fit; ALiBi counts no positions.
IN_SHAPES = {"embedding_length", "feed_forward_length", "context_length", "vocab_size"}
# What a key may say if the configuration has no name for it: nothing is to be done then.
NOTHING: dict[str, Any] = {
    **{"attn_logit_softcapping": 0, "final_logit_softcapping": 0, "router_logit_softcapping": 0},
    **{"logit_scale": 1, "embedding_scale": 1, "residual_scale": 1, "attention.output_scale": 1},
    **{"attention.clamp_kqv": 0, "attention.max_alibi_bias": 0, "attention.temperature_scale": 0},
    **{"attention.temperature_length": 0, "attention.shared_kv_layers": 0, "attention.causal": True},
    **{"expert_count": 0, "expert_used_count": 0, "expert_shared_count": 0, "expert_feed_forward_length": 0},
    **{"expert_group_count": 0, "expert_group_used_count": 0, "expert_shared_feed_forward_length": 0},
    **{"expert_weights_scale": 1, "expert_weights_norm": False, "expert_gating_func": 0},
    **{"leading_dense_block_count": 0, "interleave_moe_layer_step": 0, "moe_every_n_layers": 0},
    **{"nextn_predict_layers": 0, "pooling_type": 0, "use_parallel_residual": False},
    **{"attention.q_lora_rank": 0, "attention.kv_lora_rank": 0, "swin_norm": False, "activation_sparsity_scale": 0},
}
SET_ELSEWHERE = {
    *("vocab_size", "attention.key_length", "attention.value_length", "attention.scale", "attention.sliding_window"),
    *("attention.key_length_swa", "attention.value_length_swa", "attention.sliding_window_pattern"),
    *("rope.dimension_count", "rope.dimension_count_swa", "rope.freq_base", "rope.freq_base_swa", "rope.scale_linear"),
    *(f"{KEY}{name}" for name in (*UNDERSTOOD, *NEUTRAL)),
}
# Says how a file was made; or is used while a model is trained.
OF_NO_WEIGHT = {"tensor_data_layout", f"{KEY}finetuned", "attention.layer_norm_epsilon_type"}
WORDS = {"tensor_data_layout", f"{KEY}type", f"{KEY}finetuned", "attention.layer_norm_epsilon_type"}
KNOWN = {*FIELDS, *NOTHING, *SET_ELSEWHERE, *OF_NO_WEIGHT}
# Switches of configurations, on if every block has these tensors.
SWITCHES = {
    "attention_bias": ("attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_output.bias"),
    "mlp_bias": ("ffn_gate.bias", "ffn_up.bias", "ffn_down.bias"),
}
# Blocks of the models whose attention is scaled by the width of a head as hidden / heads, and not as the key's length;
# llama.cpp knows them by the same count (Gemma 2 27B, Gemma 3 27B).
BY_HIDDEN = {("gemma2", 46), ("gemma3", 62)}


class Metadata:
    """A configuration in the making: `data` as transformers saves it, `notes` for what stays behind."""

    def __init__(self, file: GgufFile, data: dict[str, Any]) -> None:
        self.file, self.data, self.notes = file, data, list[str]()
        self.said = file.of_architecture()

    def refused(self, key: str, why: str = "has no counterpart in the model that transformers builds") -> UsageError:
        """The error for a key that cannot be carried over."""
        return refused(self.file, f"{self.file.architecture}.{key} = {self.said[key]}", why)


def refused(file: GgufFile, what: str, why: str) -> UsageError:
    """The error for what cannot be carried over."""
    return UsageError(
        f"{what} in the GGUF file {why}",
        where=str(file.path),
        fix="Convert the model's own checkpoint (config.json and safetensors).",
    )


def check_numbers(file: GgufFile) -> None:
    """Raises UsageError for numbers that every file has and this one lacks, for non-numbers, and for numbers of
    each block and lists of ids, which transformers takes one of for all.
    """
    said = file.of_architecture()
    absent = [key for key in NEEDED if not said.get(key)]
    if not any(key.endswith("_epsilon") for key in said):
        absent.append("attention.layer_norm_epsilon or layer_norm_rms_epsilon")
    if absent:
        names = ", ".join(f"{file.architecture}.{key}" for key in absent)
        raise refused(file, names, "is missing or 0, and a model cannot be built without it")
    numbers = {f"{file.architecture}.{key}": value for key, value in said.items() if key in KNOWN and key not in WORDS}
    ids = {key: file.get(key) for key in file.keys("tokenizer.ggml.") if key.endswith("_token_id")}
    for key, value in (numbers | ids).items():
        if isinstance(value, list) and not key.endswith("sliding_window_pattern"):
            raise refused(file, f"{key}, a list,", "is read by transformers as one number")
        if isinstance(value, str) or (isinstance(value, float) and not math.isfinite(value)):
            raise refused(file, f"{key} = {value}", "is not a number")
    tokens, table = len(file.get("tokenizer.ggml.tokens") or ()), file.shapes.get("token_embd.weight")
    if table is not None and tokens > table[0]:
        raise refused(file, f"tokenizer.ggml.tokens, {tokens} of them,", f"has more tokens than the model, {table[0]}")


def complete_config(file: GgufFile, data: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(`data` with what the metadata says, notes): `data` is what transformers made of the file, as it is saved.

    Raises UsageError, by name, for what the configuration cannot say.
    """
    found = Metadata(file, dict(data))
    _fields(found)
    _shapes(found)
    _ids(found)
    _heads(found)
    _windows(found)
    _positions(found)
    strange = sorted(key for key in found.said if key not in KNOWN)
    if strange:
        names = ", ".join(f"{file.architecture}.{key}" for key in strange)
        found.notes.append(f"metadata that is not understood, and not carried over: {names}")
    return found.data, found.notes


def _fields(found: Metadata) -> None:
    for key in (key for key in found.said if key in FIELDS or key in NOTHING):
        value = found.said[key]
        name = next((name for name in FIELDS.get(key, ()) if name in found.data), None)
        if name is not None and not (value == 0 and NOTHING.get(key) == 0):
            found.data[name] = value
        elif name is None and key not in IN_SHAPES and value != NOTHING.get(key):
            _unless_usual(found, key)
        elif name is not None and "softcapping" in key:
            found.data[name] = None


def _unless_usual(found: Metadata, key: str) -> None:
    """Some say what the class of the configuration does anyway."""
    if key == "attention.head_count_kv" and found.said[key] in (found.said.get("attention.head_count"), 0):
        return
    if key == "expert_gating_func" and found.said[key] == 1:  # softmax, as in every class that names no other
        return
    raise found.refused(key)


def _shapes(found: Metadata) -> None:
    """Tables are as long as they are; biases and a head of its own are there if their tensors are."""
    shapes, data = found.file.shapes, found.data
    if "token_embd.weight" in shapes:
        data["vocab_size"] = shapes["token_embd.weight"][0]
    if "position_embd.weight" in shapes and "n_positions" in data:
        data["n_positions"] = shapes["position_embd.weight"][0]
    data["tie_word_embeddings"] = "output.weight" not in shapes
    there = set(blocks_of(shapes))
    blocks = range(int(found.said.get("block_count", 0)))
    for switch, names in SWITCHES.items():
        if switch in data:
            data[switch] = all((block, name) in there for block in blocks for name in names)


def _ids(found: Metadata) -> None:
    """Special tokens are those of the file, and not the class's own."""
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        value = found.file.get(f"tokenizer.ggml.{key}_token_id")
        found.data[f"{name}_token_id"] = value if isinstance(value, int) and value < found.data["vocab_size"] else None


def _heads(found: Metadata) -> None:
    """The width of a head, and by what attention is scaled."""
    said, data = found.said, found.data
    heads = int(said.get("attention.head_count") or 1)
    usual = int(said.get("embedding_length", 0)) // heads
    width = int(said.get("attention.key_length", usual))
    if "head_dim" in data:
        data["head_dim"] = width
    elif width != usual:
        raise found.refused("attention.key_length")
    for key in ("attention.value_length", "attention.key_length_swa", "attention.value_length_swa"):
        if said.get(key, width) != width:
            raise found.refused(key, "differs from attention.key_length, which transformers' reader does not know")
    scale = said.get("attention.scale") or None
    if "query_pre_attn_scalar" in data:
        by_hidden = (found.file.architecture, said.get("block_count")) in BY_HIDDEN
        scalar = float(scale) ** -2 if scale else usual if by_hidden else width
        data["query_pre_attn_scalar"] = round(scalar) if abs(scalar - round(scalar)) < 1e-3 else scalar
    elif scale and abs(float(scale) * width**0.5 - 1) > 1e-5:
        raise found.refused("attention.scale")


def _windows(found: Metadata) -> None:
    """Sliding windows, and which layers have them."""
    said, data = found.said, found.data
    window = int(said.get("attention.sliding_window") or 0)
    kinds = data.get("layer_types") or []
    blocks = int(said.get("block_count", 0))
    pattern = said.get("attention.sliding_window_pattern")
    if pattern is not None:
        if "sliding_attention" not in kinds:
            raise found.refused("attention.sliding_window_pattern")
        slides = pattern if isinstance(pattern, list) else [bool((i + 1) % int(pattern)) for i in range(blocks)]
        data["layer_types"] = kinds = ["sliding_attention" if each else "full_attention" for each in slides]
    if "sliding_attention" in kinds or (window and "sliding_window" in data and not kinds):
        data["sliding_window"] = window or data["sliding_window"]
    elif window and window < int(said.get("context_length", 0)):
        raise found.refused("attention.sliding_window")
    elif data.get("sliding_window") is not None:
        data["sliding_window"] = None  # the class has one by default, and the file none


def _positions(found: Metadata) -> None:
    """The base of rotary positions, their share of a head, and how they are scaled."""
    said, data = found.said, found.data
    rope = data.get("rope_parameters")
    theta = float(said.get("rope.freq_base", 10_000.0))
    scaled = scaled_positions(found.file, said, theta, int(said.get("context_length", 0)))
    if not rope:
        if "rope.freq_base" in said or scaled["rope_type"] != "default":
            raise found.refused("rope.freq_base", "is there, and transformers' model has no rotary positions")
        return
    local = rope.get("sliding_attention")
    whole = dict(rope["full_attention"] if local is not None else rope)
    width = int(found.data.get("head_dim") or 0) or int(said["embedding_length"]) // int(said["attention.head_count"])
    share = int(said.get("rope.dimension_count") or width) / width
    if "partial_rotary_factor" in whole or "partial_rotary_factor" in data:
        whole["partial_rotary_factor"] = share
        data.pop("partial_rotary_factor", None)
    elif share != 1.0:
        raise found.refused("rope.dimension_count")
    kept = {key: whole[key] for key in ("partial_rotary_factor", "truncate") if key in whole}
    whole = {"rope_theta": theta if "rope.freq_base" in said else whole.get("rope_theta", theta), **kept, **scaled}
    if "original_max_position_embeddings" in data:
        data["original_max_position_embeddings"] = scaled.get(
            "original_max_position_embeddings", int(said.get("context_length", 0))
        )
    if said.get("rope.dimension_count_swa", width) != width:
        raise found.refused("rope.dimension_count_swa")
    base = said.get("rope.freq_base_swa")
    if local is not None:
        slid = dict(local) | ({"rope_theta": float(base)} if base else {})
        data["rope_parameters"] = rope | {"full_attention": whole, "sliding_attention": slid}
    elif base is not None and float(base) != theta:
        raise found.refused("rope.freq_base_swa")
    else:
        data["rope_parameters"] = whole
