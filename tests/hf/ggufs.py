"""GGUF files of tiny models of transformers, written by the gguf package as llama.cpp's converter does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from gguf import MODEL_ARCH_NAMES, GGUFEndian, GGUFWriter, get_tensor_name_map
from torch import Tensor, nn

LETTERS = [chr(ord("a") + i) for i in range(26)]
TOKENS = ["<s>", "</s>", *LETTERS, "ab", "cd", "abcd", "Ġ", "Ġa", "ef"]
MERGES = ["a b", "c d", "ab cd", "Ġ a", "e f"]
VOCAB = len(TOKENS)
OFFSET = ("gemma2", "gemma3", "nemotron")  # norms are stored as 1 + weight
SHAPE: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 1}
SHAPE |= {"max_position_embeddings": 64, "pad_token_id": None}


def tiny(kind: str, **options: Any) -> nn.Module:
    """A random model of a family (`Llama`, say), in eval mode; weights are large enough that positions matter."""
    import transformers

    auto: Any = transformers.AutoModelForCausalLM
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SHAPE | options)
    model: nn.Module = auto.from_config(config, attn_implementation="eager", trust_remote_code=False)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.normal_(0, 0.3) if value.dim() > 1 else value.normal_(1.0 if "norm" in name else 0.0, 0.1)
    return model.eval()


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """llama.cpp's order of the rows of q and k: rotary pairs are neighbours there, halves here. weight [H*D, ...]."""
    return weight.view(heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def write_gguf(
    model: Any,
    path: Path,
    *,
    arch: str = "llama",
    metadata: dict[str, Any] | None = None,
    tokenizer: dict[str, Any] | None = None,
    others: dict[str, Any] | None = None,
    tensors: dict[str, Tensor] | None = None,
    without: tuple[str, ...] = (),
    kinds: dict[str, str] | None = None,
    order: GGUFEndian = GGUFEndian.LITTLE,
) -> Path:
    """Write `model`. `metadata` is of the architecture (None takes a key away), `tokenizer` of `tokenizer.`, `others`
    have their whole keys; `tensors` come besides or instead, `without` are names in the file that are left out; `kinds`
    are those of quantised tensors, by the end of their names.
    """
    writer = GGUFWriter(str(path), arch, endianess=order)
    keys = _metadata(model.config) | (metadata or {})
    values = {f"{arch}.{key}": value for key, value in keys.items()}
    values |= {f"tokenizer.{key}": value for key, value in (_tokenizer() | (tokenizer or {})).items()}
    for key, value in (values | (others or {})).items():
        _add(writer, key, value)
    found = _tensors(model, arch) | (tensors or {})
    for name, tensor in found.items():
        kind = next((kind for end, kind in (kinds or {}).items() if name.endswith(end)), None)
        if name not in without:
            array = tensor.detach().contiguous().float().numpy()
            if kind is None:
                writer.add_tensor(name, array)
            else:
                writer.add_tensor(name, *_quantised(array, kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _quantised(values: Any, kind: str) -> tuple[Any, None, Any]:
    """Bytes of a tensor of a kind, as `add_tensor` takes them."""
    from gguf import GGMLQuantizationType, quantize

    which = GGMLQuantizationType[kind]
    return quantize(values, which), None, which


KINDS = {
    "attn_q.weight": "Q4_1",
    "attn_k.weight": "Q4_1",
    "attn_v.weight": "Q5_0",
    "attn_output.weight": "Q4_0",
    "ffn_gate.weight": "Q4_1",
    "ffn_up.weight": "Q4_1",
    "ffn_down.weight": "Q8_0",
    "token_embd.weight": "Q8_0",
}


def quantised_folder(place: Path, kind: str = "Llama", **options: Any) -> Path:
    """The directory that is made of a GGUF file with weights of several kinds."""
    from sleepc.hf.gguf import RECORD
    from sleepc.hf.gguf_child import convert

    shape = {"intermediate_size": 64, "tie_word_embeddings": True} | options
    path, folder = place / "tiny.gguf", place / "model"
    folder.mkdir()
    convert(write_gguf(tiny(kind, **shape), path, kinds=KINDS), folder)
    (folder / RECORD).write_text("{}")
    return folder


def _metadata(config: Any) -> dict[str, Any]:
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": width,
        "attention.value_length": width,
        "attention.layer_norm_rms_epsilon": getattr(config, "rms_norm_eps", None),
        "rope.freq_base": float(rope["rope_theta"]),
        "rope.dimension_count": int(width * rope.get("partial_rotary_factor", 1.0)),
    }


def _tokenizer() -> dict[str, Any]:
    return {
        "ggml.model": "gpt2",
        "ggml.pre": "gpt-2",
        "ggml.tokens": TOKENS,
        "ggml.token_type": [3, 3] + [1] * (VOCAB - 2),
        "ggml.merges": MERGES,
        "ggml.bos_token_id": 0,
        "ggml.eos_token_id": 1,
    }


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _tensors(model: Any, arch: str) -> dict[str, Tensor]:
    config = model.config
    kind = next(kind for kind, name in MODEL_ARCH_NAMES.items() if name == arch)
    names = get_tensor_name_map(kind, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    found: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stem, _, suffix = name.rpartition(".")
        if arch == "llama" and (count := heads.get(stem.rpartition(".")[2])):
            value = interleaved(value, count)
        if arch in OFFSET and name.endswith("norm.weight"):
            value = value + 1
        if stem.endswith("experts"):  # one parameter for all of them; gate and up are apart in the file
            block = stem.split(".")[2]
            parts = {"gate": value.chunk(2, 1)[0], "up": value.chunk(2, 1)[1]} if "up" in suffix else {"down": value}
            found |= {f"blk.{block}.ffn_{part}_exps.weight": tensor for part, tensor in parts.items()}
            continue
        found[f"{names.get_name(stem)}.{suffix}"] = value[0] if stem.endswith("shared_expert_gate") else value
    return found
