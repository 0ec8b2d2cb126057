"""What a GGUF file says is in the model that comes out of it, or the file is refused by name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from sleepc.errors import SleepcError, UsageError

pytest.importorskip("gguf", reason="the gguf package is not installed")
pytest.importorskip("accelerate", reason="transformers reads GGUF with accelerate, which is not installed")

from gguf import GGUFEndian

from sleepc.hf import gguf_child
from sleepc.hf.gguf_child import convert
from sleepc.hf.gguf_file import GgufFile
from sleepc.hf.gguf_rope import llama3_divisors
from sleepc.hf.tokenizer import load_tokenizer
from tests.hf.ggufs import TOKENS, VOCAB, tiny, write_gguf

LAYER_NORM = {"attention.layer_norm_rms_epsilon": None, "attention.layer_norm_epsilon": 1e-5}
SHORT, LONG = [1.0, 1.1, 1.2, 1.3], [1.0, 2.0, 3.0, 4.0]


def read(model: nn.Module, folder: Path, **options: Any) -> tuple[Path, list[str]]:
    """(directory, notes) of a GGUF file of the model."""
    (folder / "out").mkdir()
    return folder / "out", convert(write_gguf(model, folder / "x.gguf", **options), folder / "out")


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(torch.arange(60)[None] % VOCAB).logits  # type: ignore[no-any-return]


def same(model: nn.Module, folder: Path) -> bool:
    """60 tokens give the same logits, and the model is not so flat that any other would."""
    assert logits(model).std() > 0.1
    found = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", trust_remote_code=False)
    return torch.allclose(logits(found), logits(model), atol=1e-4)


def rope(kind: str, **options: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 10_000.0, **options}


GEMMA2 = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8}
GEMMA3 = GEMMA2 | {"num_hidden_layers": 6}
MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True}
# name: (family, its options, architecture in the file, metadata, tensors besides)
CARRIED: dict[str, tuple[str, dict[str, Any], str, dict[str, Any], dict[str, list[float]]]] = {
    "biases of attention and of the MLP": ("Llama", {"attention_bias": True, "mlp_bias": True}, "llama", {}, {}),
    "Qwen 2": ("Qwen2", {}, "qwen2", {}, {}),
    "width of a head": ("Qwen3", {"head_dim": 16}, "qwen3", {}, {}),
    "linear positions": (
        *("Llama", {"rope_parameters": rope("linear", factor=4.0)}, "llama"),
        *({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, {}),
    ),
    "YaRN": (
        *("Qwen2", {"rope_parameters": rope("yarn", factor=4.0, original_max_position_embeddings=16)}, "qwen2"),
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16},
        {},
    ),
    "LongRoPE and a window": (
        "Phi3",
        {
            "rope_parameters": rope("longrope", short_factor=SHORT, long_factor=LONG, partial_rotary_factor=1.0),
            "original_max_position_embeddings": 32,
            "sliding_window": 20,
        },
        "phi3",
        {
            "rope.scaling.original_context_length": 32,
            "rope.scaling.attn_factor": math.sqrt(1 + math.log(2) / math.log(32)),
            "attention.sliding_window": 20,
        },
        {"rope_factors_short.weight": SHORT, "rope_factors_long.weight": LONG},
    ),
    "Gemma 2's soft caps and scale": (
        *("Gemma2", GEMMA2 | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}, "gemma2"),
        {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "attention.sliding_window": 8},
        {},
    ),
    "Gemma 3's two kinds of positions": (
        "Gemma3Text",
        GEMMA3
        | {
            "rope_parameters": {
                "full_attention": rope("linear", factor=4.0),
                "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
            }
        },
        "gemma3",
        {
            **{"rope.freq_base_swa": 5000.0, "attention.sliding_window": 8},
            **{"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
        },
        {},
    ),
    "which layers slide": (
        *("Gemma3Text", GEMMA3 | {"layer_types": ["full_attention", "sliding_attention"] * 3}, "gemma3"),
        {"attention.sliding_window": 8, "attention.sliding_window_pattern": [False, True] * 3},
        {},
    ),
    "a share of a head": (
        *("StableLm", {"rope_parameters": rope("default", partial_rotary_factor=0.5) | {"rope_theta": 500.0}}),
        *("stablelm", LAYER_NORM | {"use_parallel_residual": False}, {}),
    ),
    "base of positions and window": (
        *("Starcoder2", {"rope_parameters": rope("default") | {"rope_theta": 500.0}, "sliding_window": 20}),
        *("starcoder2", LAYER_NORM | {"attention.sliding_window": 20}, {}),
    ),
    "epsilon of its norms": (
        *("Nemotron", {"norm_eps": 1e-2, "rope_parameters": rope("default", partial_rotary_factor=0.5)}, "nemotron"),
        *(LAYER_NORM | {"attention.layer_norm_epsilon": 1e-2}, {}),
    ),
    "experts": (
        *("Qwen3Moe", MIXTURE | {"head_dim": 16}, "qwen3moe"),
        *({"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 24}, {}),
    ),
    "experts that are all used, one bias each": (
        *("Qwen2Moe", MIXTURE | {"num_experts_per_tok": 4, "shared_expert_intermediate_size": 40}, "qwen2moe"),
        {
            **{"expert_count": 4, "expert_used_count": 4, "expert_feed_forward_length": 24},
            **{"expert_shared_feed_forward_length": 40, "expert_weights_norm": True},
        },
        {},
    ),
}


@pytest.mark.parametrize("name", CARRIED)
def test_what_transformers_leaves_out_is_carried_over(tmp_path: Path, name: str) -> None:
    family, options, arch, metadata, tensors = CARRIED[name]
    model = tiny(family, **options)
    besides = {key: torch.tensor(value) for key, value in tensors.items()}
    folder, notes = read(model, tmp_path, arch=arch, metadata=metadata, tensors=besides)
    assert same(model, folder)
    assert notes == []


@pytest.mark.parametrize(
    ("width", "theta", "original", "low", "high", "factor"),
    [
        (128, 5e5, 8192, 1.0, 4.0, 8.0),
        (128, 5e5, 8192, 1.0, 4.0, 32.0),
        (8, 1e4, 32, 1.0, 4.0, 8.0),  # no frequency lies between
        (16, 1e4, 32, 1.0, 4.0, 8.0),  # one does
        (64, 5e5, 32, 1.0, 4.0, 8.0),
        (64, 5e5, 40, 2.0, 5.0, 3.0),
        (16, 500.0, 16, 1.0, 4.0, 2.5),
        (16, 1e4, 40, 1.0, 4.0, 8.0),
        (16, 1e4, 40, 1.5, 2.0, 8.0),
    ],
)
def test_the_scaling_of_llama_3_is_recovered_from_its_divisors(
    tmp_path: Path, width: int, theta: float, original: int, low: float, high: float, factor: float
) -> None:
    scaled = rope("llama3", factor=factor, low_freq_factor=low, high_freq_factor=high)
    scaled |= {"original_max_position_embeddings": original, "rope_theta": theta}
    model = tiny("Llama", head_dim=width, rope_parameters=scaled, max_position_embeddings=131072)
    turns = [theta ** (-2 * i / width) / (2 * math.pi) for i in range(width // 2)]
    divisors = torch.tensor(llama3_divisors(turns, factor, original, low, high))
    folder, _ = read(model, tmp_path, tensors={"rope_freqs.weight": divisors})
    assert same(model, folder)
    plain = tiny("Llama", head_dim=width, rope_parameters=rope("default") | {"rope_theta": theta})
    assert not same(plain, folder)  # 60 tokens tell it from none at all


REFUSED: dict[str, dict[str, Any]] = {
    r"llama\.expert_count = 8": {"metadata": {"expert_count": 8}},
    r"llama\.attention\.scale = 0\.5": {"metadata": {"attention.scale": 0.5}},
    r"llama\.logit_scale = 0\.5": {"metadata": {"logit_scale": 0.5}},
    r"llama\.attn_logit_softcapping = 30": {"metadata": {"attn_logit_softcapping": 30.0}},
    r"llama\.attention\.sliding_window = 8": {"metadata": {"attention.sliding_window": 8}},
    r"llama\.attention\.causal = False": {"metadata": {"attention.causal": False}},
    r"llama\.rope\.dimension_count = 4": {"metadata": {"rope.dimension_count": 4}},
    r"llama\.attention\.head_count_kv, a list": {"metadata": {"attention.head_count_kv": [2, 1]}},
    r"llama\.attention\.value_length = 4": {"metadata": {"attention.value_length": 4}},
    r"rope\.scaling\.type = ntk": {"metadata": {"rope.scaling.type": "ntk", "rope.scaling.factor": 2.0}},
    r"rope\.scaling\.yarn_ext_factor = 0\.5": {"metadata": {"rope.scaling.yarn_ext_factor": 0.5}},
    r"rope_freqs\.weight is not": {"tensors": {"rope_freqs.weight": torch.tensor([1.0, 3.0, 2.0, 8.0])}},
    r"no place for: blk\.0\.attn_q\.bias, blk\.1\.attn_q\.bias": {
        "tensors": {f"blk.{i}.attn_q.bias": torch.zeros(32) for i in range(2)}
    },
    r"no place for: blk\.1\.attn_q_norm\.weight": {"tensors": {"blk.1.attn_q_norm.weight": torch.ones(8)}},
    r"no place for: blk\.2\.": {"tensors": {"blk.2.ffn_up.weight": torch.ones(48, 32)}},
    r"lacks tensors of its model: .*layers\.1\.mlp\.up_proj": {"without": ("blk.1.ffn_up.weight",)},
    r"other shapes .*layers\.0\.mlp\.up_proj.* is \(40, 32\)": {"tensors": {"blk.0.ffn_up.weight": torch.ones(40, 32)}},
    r"llama\.rope\.scaling\.factor = abc": {"metadata": {"rope.scaling.factor": "abc"}},
    r"llama\.rope\.freq_base = nan": {"metadata": {"rope.freq_base": math.nan}},
    r"llama\.block_count in .* missing": {"metadata": {"block_count": None}},
    r"llama\.attention\.head_count in .* missing or 0": {"metadata": {"attention.head_count": 0}},
    r"llama\.attention\.layer_norm_epsilon or": {"metadata": {"attention.layer_norm_rms_epsilon": None}},
    r"rope_freqs\.weight is not one positive": {"tensors": {"rope_freqs.weight": torch.tensor([1.0, 1.0, 2.0])}},
    r"rope_factors_short\.weight is not one": {"tensors": {"rope_factors_short.weight": torch.zeros(4)}},
    r"rope_factors_short\.weight has 4": {"tensors": {"rope_factors_short.weight": torch.ones(4)}},
    r"tokenizer\.ggml\.eot_token_id = x": {"tokenizer": {"ggml.eot_token_id": "x"}},
    r"35 of them, .* more tokens than the model, 34": {"tokenizer": {"ggml.tokens": [*TOKENS, "more"]}},
    r"tokenizer\.ggml\.eos_token_id, a list": {"tokenizer": {"ggml.eos_token_id": [1, 2]}},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_carried_over_is_refused_by_name(tmp_path: Path, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read(tiny("Llama"), tmp_path, **REFUSED[message])


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("x.gguf", {"split.no": 0, "split.count": 2}, "part 1 of 2"),
        ("x.gguf", {"split.no": 1, "split.count": 3}, "part 2 of 3"),
        ("x.gguf", {"split.tensors.count": 100}, r"21 of the 100 tensors"),
        ("x-00001-of-00002.gguf", {}, "part 1 of 2"),
        ("x-2-of-3.GGUF", {}, "part 2 of 3"),
        ("x-00001-of-00001.gguf", {"split.count": 1}, None),
        ("x.gguf", {"general.type": "mmproj"}, "no model but 'mmproj'"),
        ("x.gguf", {"adapter.type": "lora"}, "no model but 'adapter'"),
    ],
)
def test_parts_and_other_kinds_of_files(tmp_path: Path, name: str, keys: dict[str, Any], message: str | None) -> None:
    path = write_gguf(tiny("Llama"), tmp_path / name, others=keys)
    if message is None:
        convert(path, tmp_path)
        return
    with pytest.raises(UsageError, match=message):
        convert(path, tmp_path)


def test_a_file_in_the_other_byte_order(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="other byte order"):
        read(tiny("Llama"), tmp_path, order=GGUFEndian.BIG)


def test_parameters_that_are_not_in_the_file_are_never_drawn(tmp_path: Path) -> None:
    """A first part that says nothing of being one: its blocks end early."""
    later = tuple(f"blk.1.{name}.weight" for name in ("attn_q", "attn_k", "attn_norm", "ffn_up", "ffn_norm"))
    with pytest.raises(UsageError, match="lacks tensors"):
        read(tiny("Llama"), tmp_path, without=later)


def test_a_head_of_its_own_and_a_tied_one(tmp_path: Path) -> None:
    tied = tiny("Llama", tie_word_embeddings=True)
    folder, _ = read(tied, tmp_path)
    assert same(tied, folder)
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is True


def test_special_tokens_are_those_of_the_file(tmp_path: Path) -> None:
    folder, _ = read(tiny("Phi3"), tmp_path, arch="phi3")  # whose class has 32000 for its end and for padding
    config = json.loads((folder / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"], config.get("pad_token_id")) == (0, 1, None)


def test_room_is_looked_at_before_anything_is_dequantised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*given: object) -> None:
        raise AssertionError("it was begun")

    monkeypatch.setattr(gguf_child, "_load", never)
    monkeypatch.setattr(gguf_child, "available_memory", lambda: 400 << 20)
    with pytest.raises(SleepcError, match=r"needs about 0\.\d GB of memory, and 0\.4 GB are free"):
        read(tiny("Llama"), tmp_path)
    monkeypatch.setattr("sleepc.hf.gguf_child.shutil.disk_usage", lambda place: type("Usage", (), {"free": 10_000}))
    with pytest.raises(SleepcError, match=r"on the disk, and 0\.0 GB are free"):
        convert(tmp_path / "x.gguf", tmp_path)


def test_memory_is_known_here() -> None:
    found = gguf_child.available_memory()
    assert found is not None
    assert found > 0


def test_what_lies_beside_the_file_is_not_looked_at(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer_config.json", "generation_config.json", "special_tokens_map.json"):
        (tmp_path / name).write_text('{"add_bos_token": true, "eos_token_id": 7, "auto_map": {"AutoConfig": "x.Y"}}')
    model = tiny("Llama")
    folder, notes = read(model, tmp_path)
    assert same(model, folder)
    assert notes == []
    assert load_tokenizer(folder).encode("ab") == [28]
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [1]


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    """As in JSON: which of the two is meant?"""

    def text(value: str) -> bytes:
        return len(value).to_bytes(8, "little") + value.encode()

    pair = text("general.architecture") + (8).to_bytes(4, "little") + text("llama")  # 8: a text
    header = b"GGUF" + (3).to_bytes(4, "little") + (0).to_bytes(8, "little") + (2).to_bytes(8, "little")
    (tmp_path / "x.gguf").write_bytes(header + pair + pair)
    with pytest.raises(SleepcError, match=r"Duplicate general\.architecture"):
        GgufFile(tmp_path / "x.gguf")
