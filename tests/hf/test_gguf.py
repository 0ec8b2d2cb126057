"""GGUF files, made here by the gguf package from a tiny Llama, become directories with the same model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from sleepc.errors import SleepcError, UsageError
from sleepc.hf import gguf as subject
from sleepc.hf.tokenizer import load_tokenizer

GGUFWriter = pytest.importorskip("gguf", reason="the gguf package is not installed").GGUFWriter
pytest.importorskip("accelerate", reason="transformers reads GGUF with accelerate, which is not installed")

VOCAB, HEADS, KV_HEADS, WIDTH = 34, 4, 2, 32
# Where a Llama's tensors are in a GGUF file; block tensors come after "blk.N.".
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def tiny_llama() -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS, max_position_embeddings=64, rms_norm_eps=1e-5, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model: nn.Module = LlamaForCausalLM(config)
    return model.eval()


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """GGUF's order of the rows of q and k: rotary pairs are neighbours there, halves here. weight [H*D,C]."""
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)


def gguf_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if not stem.startswith("model.layers."):
        return f"{NAMES[stem]}.weight"
    block, inner = stem.removeprefix("model.layers.").split(".", 1)
    return f"blk.{block}.{NAMES[inner]}.weight"


def write_gguf(model: nn.Module, path: Path) -> None:
    writer = GGUFWriter(str(path), "llama")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(48)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("gpt2")
    letters = [chr(ord("a") + i) for i in range(26)]
    writer.add_token_list(["<s>", "</s>", *letters, "ab", "cd", "abcd", "Ġ", "Ġa", "ef"])
    writer.add_token_types([3, 3] + [1] * (VOCAB - 2))
    writer.add_token_merges(["a b", "c d", "ab cd", "Ġ a", "e f"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    for name, value in model.state_dict().items():
        heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(name.split(".")[-2])
        tensor = interleaved(value, heads) if heads else value
        writer.add_tensor(gguf_name(name), tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLEEPC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    write_gguf(tiny_llama(), path)
    return path


def convert(path: Path) -> Path:
    return subject.gguf_to_directory(path, lambda what, share: None)


def test_the_directory_holds_the_same_model(file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    folder = subject.gguf_to_directory(file, lambda what, share: said.append(what))
    assert folder.is_relative_to(cache)
    assert sorted(path.name for path in cache.iterdir()) == [folder.name]
    assert any("dequantising" in what for what in said)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"

    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", trust_remote_code=False)
    model.eval()
    tokens = torch.arange(2, 26)[None]
    with torch.no_grad():
        assert torch.allclose(model(tokens).logits, tiny_llama()(tokens).logits, atol=1e-6)

    tokenizer = load_tokenizer(folder)
    assert tokenizer.decode(tokenizer.encode("abcd ef")) == "abcd ef"
    assert tokenizer.eos_ids == (1,)

    def never(path: Path, target: Path) -> None:
        raise AssertionError("the second time nothing is converted")

    monkeypatch.setattr(subject, "_convert_in_child", never)
    assert convert(file) == folder


@pytest.mark.parametrize("share", [0.01, 0.9])
def test_a_truncated_file_leaves_nothing_behind(file: Path, cache: Path, share: float) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(SleepcError, match="cannot be read") as caught:
        convert(file)
    assert caught.value.where == str(file)
    assert "Traceback" not in str(caught.value)
    assert list(cache.iterdir()) == []


def test_what_is_no_gguf_file(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "x.gguf"
    with pytest.raises(UsageError, match="cannot read"):
        convert(path)
    path.write_bytes(b"GGML and more")
    with pytest.raises(UsageError, match="is not a GGUF file"):
        convert(path)
    path.write_bytes(b"")
    with pytest.raises(UsageError, match="is not a GGUF file"):
        convert(path)


def test_without_the_gguf_package_it_says_what_to_install(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(subject.MAGIC)
    monkeypatch.setattr(subject, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="needs gguf") as caught:
        convert(path)
    assert "sleepc[gguf]" in caught.value.fix


def test_the_child_takes_no_module_from_where_it_is_started(
    file: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap = tmp_path / "trap"
    (trap / "sleepc").mkdir(parents=True)
    (trap / "sleepc" / "__init__.py").write_text("raise SystemExit('a stranger ran')")
    (trap / "torch.py").write_text("raise SystemExit('a stranger ran')")
    monkeypatch.chdir(trap)
    assert (convert(file) / "model.safetensors").is_file()


def test_the_parent_loads_no_torch(file: Path, cache: Path) -> None:
    """The memory of dequantisation is the child's; the one that asks does not even import PyTorch."""
    code = (
        "import sys; from pathlib import Path; from sleepc.hf.gguf import gguf_to_directory;"
        f"gguf_to_directory(Path({str(file)!r}), lambda what, share: None); sys.exit('torch' in sys.modules)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
