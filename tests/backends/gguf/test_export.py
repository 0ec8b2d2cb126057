"""A GGUF file for llama.cpp: what it says, what its tensors are, and what is told where there can be none."""

from __future__ import annotations

import json
import re
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch

pytest.importorskip("gguf", reason="the gguf package is not installed")

import gguf
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import sleepc
from sleepc.api import Program
from sleepc.backends.contract import Draft
from sleepc.backends.gguf import tensors
from sleepc.backends.gguf.metadata import describe
from sleepc.backends.gguf.tensors import kind_of, placed
from sleepc.backends.gguf.vocabulary import _unwritable, add_vocabulary, split_name
from sleepc.backends.gguf.write import write_gguf
from sleepc.errors import SleepcError, SleepcWarning, UsageError
from sleepc.hf.gguf_file import GgufFile
from sleepc.hf.gguf_tokens import SPLITS, save_tokenizer
from sleepc.ir.tensorfile import Planned
from sleepc.recipe import make_recipe
from tests.cli.models import run_here, save_model
from tests.families import VOCAB, family
from tests.hf.ggufs import tiny
from tests.hf.ggufs import write_gguf as write_tiny
from tests.hf.test_gguf_tokens import OWN
from tests.hf.tokenizer_kinds import KINDS, added, bytelevel, save, with_control
from tests.natives import NATIVE, TOKENS

WORDS = "has no tokenizer and takes token ids only: its tokenizer is no byte-level BPE but WordLevel"


def sizes(**more: Any) -> dict[str, Any]:
    """A configuration of the class, whose key heads have two value heads each."""
    from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5TextConfig

    small: dict[str, Any] = {
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 2,
        "vocab_size": 20,
        "head_dim": 16,
    }
    small |= {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
    small |= {"linear_key_head_dim": 3, "linear_value_head_dim": 3}
    made = Qwen3_5TextConfig(**small, layer_types=["linear_attention", "full_attention"], **more)
    return dict(made.to_dict())


def test_a_file_says_what_the_architecture_reads(native: Program, tmp_path: Path) -> None:
    with pytest.warns(SleepcWarning, match=WORDS):
        made = native.export(tmp_path / "out", to="gguf", tokens=TOKENS, dtype="f32")
    assert [(row["figure"], row["value"] <= 1e-5) for row in made.report["checks"]] == [
        ("weights, F32", True),
        ("logits, one call", True),
        ("logits, one by one", True),
    ]
    file = GgufFile(tmp_path / "out" / "model.gguf")
    said = file.of_architecture()
    assert file.architecture == "qwen35"
    assert said["attention.recurrent_layers"] == [True, False, True]
    assert said["rope.dimension_sections"] == [3, 3, 2, 0]
    assert (said["rope.scaling.type"], said["rope.scaling.factor"]) == ("yarn", 4.0)
    assert said["rope.scaling.original_context_length"] == 16
    assert (said["ssm.group_count"], said["ssm.time_step_rank"], said["ssm.state_size"]) == (4, 4, 16)
    assert {"blk.0.ssm_a", "blk.0.ssm_dt.bias", "blk.0.attn_qkv.weight", "blk.1.attn_q.weight"} <= set(file.shapes)
    assert file.shapes["blk.0.ssm_conv1d.weight"] == (3 * 64, 4)
    assert "output.weight" not in file.shapes
    assert (tmp_path / "out" / "LICENSE").is_file()
    assert "library_name: gguf" in (tmp_path / "out" / "README.md").read_text()


def test_four_bits_are_for_matrices_of_whole_blocks(native: Program, tmp_path: Path) -> None:
    narrow = pytest.warns(SleepcWarning, match=r"blk\.0\.ffn_down\.weight \(3 such\) are not whole blocks")
    with pytest.warns(SleepcWarning, match=WORDS), narrow:
        made = native.export(tmp_path / "out", to="gguf", tokens=TOKENS, dtype="q4_0")
    kinds = {each.name: each.tensor_type.name for each in gguf.GGUFReader(tmp_path / "out" / "model.gguf").tensors}
    assert {kinds[f"blk.0.{name}.weight"] for name in ("attn_qkv", "attn_gate", "ffn_up")} == {"Q4_0"}
    assert {kinds[name] for name in ("token_embd.weight", "blk.0.ssm_beta.weight")} == {"Q8_0"}
    assert kinds["blk.0.ffn_down.weight"] == "F16"
    assert {kinds[f"blk.0.{name}"] for name in ("ssm_conv1d.weight", "ssm_a", "attn_norm.weight")} == {"F32"}
    assert made.report["perplexity"]["before"] > 1
    assert made.report["dtype"] == "Q4_0"


def test_a_file_that_is_another_model_is_not_kept(
    native: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensors, "_one_more", lambda weight: weight)
    with pytest.warns(SleepcWarning), pytest.raises(SleepcError, match="do not compute what the program does"):
        native.export(tmp_path / "no", to="gguf", tokens=TOKENS, dtype="f32")
    assert list(tmp_path.iterdir()) == []


def test_values_come_back_as_they_were() -> None:
    """Value heads are in llama.cpp's order: of every key head the first, then the second."""
    shapes = {
        "in_proj_qkv.weight": (24, 8),
        "in_proj_z.weight": (12, 8),
        "in_proj_a.weight": (4, 8),
        "conv1d.weight": (24, 1, 4),
        "out_proj.weight": (8, 12),
        "norm.weight": (3,),
        "dt_bias": (4,),
        "A_log": (4,),
    }
    torch.manual_seed(0)
    values = {f"model.layers.0.linear_attn.{name}": torch.randn(shape) for name, shape in shapes.items()}
    values["model.norm.weight"] = torch.randn(8)
    planned = {name: Planned(torch.float32, tuple(value.shape), value.clone) for name, value in values.items()}
    places = placed(planned, sizes(), "F32")
    for name, place in places.items():
        there = place.there(values[name])
        assert tuple(there.shape) == place.shape
        torch.testing.assert_close(place.back(there), values[name])
    gates = places["model.layers.0.linear_attn.in_proj_a.weight"]
    assert gates.there(torch.arange(4.0)[:, None]).flatten().tolist() == [0, 2, 1, 3]
    rows = places["model.layers.0.linear_attn.in_proj_qkv.weight"].there(torch.arange(24.0)[:, None]).flatten()
    assert rows[:12].tolist() == [*range(12)]
    assert rows[12:].tolist() == [12, 13, 14, 18, 19, 20, 15, 16, 17, 21, 22, 23]
    assert places["model.norm.weight"].there(torch.zeros(8)).tolist() == [1.0] * 8
    with pytest.raises(UsageError, match=r"has no place for model\.visual"):
        placed({"model.visual": planned["model.norm.weight"]}, sizes(), "F32")


def test_a_head_of_its_own_is_in_eight_bits() -> None:
    assert kind_of("output.weight", (20, 32), "Q4_0", tied=False) == "Q8_0"
    assert kind_of("token_embd.weight", (20, 32), "Q4_0", tied=False) == "Q4_0"
    assert kind_of("token_embd.weight", (20, 31), "Q8_0", tied=False) == "F16"


def test_positions_are_llama_cpps_or_refused() -> None:
    def said(rope: dict[str, Any]) -> dict[str, Any]:
        writer = gguf.GGUFWriter(None, "qwen35")
        describe(
            writer, {**sizes(), "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5, **rope}}, "F16"
        )
        return {key.removeprefix("qwen35.rope."): value.value for key, value in writer.kv_data[0].items()}

    assert said({})["dimension_count"] == 8
    assert said({})["dimension_sections"] == [2, 1, 1, 0]
    assert said({"rope_type": "linear", "factor": 2.0})["scaling.factor"] == 2.0
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "attention_factor": 1.0}
    assert said(yarn)["scaling.attn_factor"] == pytest.approx(1 / (1 + 0.1 * torch.tensor(4.0).log().item()))
    assert "scaling.attn_factor" not in said({**yarn, "attention_factor": None})
    with pytest.raises(UsageError, match="without mscale, which rope_type yarn"):
        said({**yarn, "mscale": 2.0})


@pytest.mark.parametrize("name", OWN)
def test_how_a_tokenizer_splits_has_a_name(name: str) -> None:
    made = bytelevel()
    made.pre_tokenizer = OWN[name]
    found = split_name(json.loads(made.to_str()))
    assert found is not None
    assert SPLITS[found] == SPLITS[name], "also of a tokenizer with so few merges that most ways give the same ids"


def said_of(folder: Path, vocab: int) -> tuple[dict[str, Any], list[str]]:
    """What is said of a tokenizer, by keys, and what of it cannot be."""
    writer = gguf.GGUFWriter(None, "qwen35")
    told = add_vocabulary(writer, folder, vocab)
    return {key.removeprefix("tokenizer."): value.value for key, value in writer.kv_data[0].items()}, told


def test_a_tokenizer_goes_with_the_file(tmp_path: Path) -> None:
    made = bytelevel()
    made.add_special_tokens(["<|im_end|>", "<|end|>"])
    save(made, tmp_path, {"eos_token": "<|im_end|>", "chat_template": "{{ x }}"})
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [made.token_to_id("<|end|>")]}))
    vocab = made.get_vocab_size() + 2
    said, told = said_of(tmp_path, vocab)
    assert told == []
    assert (said["ggml.model"], said["ggml.pre"]) == ("gpt2", "gpt-2")
    assert said["ggml.tokens"][-4:] == ["<|im_end|>", "<|end|>", f"[PAD{vocab - 2}]", f"[PAD{vocab - 1}]"]
    assert said["ggml.token_type"][-4:] == [3, 3, 5, 5]
    assert (said["ggml.eos_token_id"], said["ggml.eot_token_id"]) == (vocab - 4, vocab - 3)
    assert (said["ggml.add_bos_token"], said["ggml.add_eos_token"]) == (False, False)
    assert said["chat_template"] == "{{ x }}"
    assert said["ggml.merges"][0] == "h e"
    (why,) = said_of(tmp_path, 5)[1]
    assert why.endswith(f"takes token ids only: its tokenizer has ids up to {vocab - 3}, and the model 5")


def test_what_only_the_configuration_says_of_a_tokenizer_goes_with_it(tmp_path: Path) -> None:
    """A beginning, added tokens, and templates that lie beside tokenizer.json."""
    made = with_control(bytelevel())
    size = made.get_vocab_size()
    extra = {str(size): added("<|fim|>"), str(size + 1): added("<tool>", special=False)}
    save(made, tmp_path, {"bos_token": "<s>", "eos_token": "</s>", "added_tokens_decoder": extra})
    (tmp_path / "chat_template.jinja").write_text("one")
    (tmp_path / "chat_templates").mkdir()
    (tmp_path / "chat_templates" / "rag.jinja").write_text("two")
    said, told = said_of(tmp_path, size + 2)
    assert told == []
    assert (said["ggml.tokens"][size:], said["ggml.token_type"][size:]) == (["<|fim|>", "<tool>"], [3, 4])
    assert (said["ggml.bos_token_id"], said["ggml.add_bos_token"]) == (made.token_to_id("<s>"), True)
    assert (said["chat_template"], said["chat_template.rag"]) == ("one", "two")


def qwen_like() -> Tokenizer:
    """Trained, split as Qwen2's own, with tokens that are control and one that is not."""
    made = Tokenizer(models.BPE())
    made.normalizer, made.pre_tokenizer, made.decoder = normalizers.NFC(), OWN["qwen2"], decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words = [*topics.values(), "naïve café 日本語の文 한국어 नमस्ते 🙂 x = [1, 2];\n\n    return {'a': 3.14}\r\n" * 20]
    trainer = trainers.BpeTrainer(vocab_size=1500, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(words, trainer)
    made.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    made.add_tokens([AddedToken("<tool_call>", normalized=False)])
    return made


TEXTS = (
    "Hello, World! It's 1234567 o'CLOCK: we'Ll go\r\n\r\n  to 3.14\t\tx=[1,2];\n\n\n",
    "日本語の文 한국어 你好 2024年! naïve café ½ ²³ … नमस्ते 🙂🙂👩‍🚀 Ⅻ \u200b\u00a0x",
    "def f(x: int) -> str:\n    return {'a': [x**2 for x in range(10)]}  # 'tis\n",
    "<|im_start|>user\nhi<|im_end|>\n<tool_call>{}<|endoftext|> end   ",
    " ",
    "\n\n \n",
    "a" * 50 + "0" * 20,
)


def test_the_file_s_tokenizer_gives_the_same_ids(tmp_path: Path) -> None:
    """As transformers reads it from the file."""
    made = qwen_like()
    save(made, tmp_path / "own", {"eos_token": "<|im_end|>"})
    said, told = said_of(tmp_path / "own", made.get_vocab_size())
    assert said["ggml.pre"] == "qwen2"
    assert [line.rpartition("(")[2] for line in told] == ["NFC)"]
    path = write_tiny(tiny("Llama"), tmp_path / "x.gguf", tokenizer=said)
    assert save_tokenizer(GgufFile(path), tmp_path / "again") == []
    again = Tokenizer.from_file(str(tmp_path / "again" / "tokenizer.json"))
    for text in TEXTS:
        assert again.encode(text).ids == made.encode(text).ids
    assert len(made.encode(TEXTS[0]).ids) < len(TEXTS[0]), "merges are used"


def _composing(made: Any) -> None:
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = OWN["qwen2"]


def _greedy(made: Any) -> None:
    made.add_special_tokens([AddedToken("<mask>", lstrip=True)])


def _ended(made: Any) -> None:
    ends = [("<s>", 1), ("</s>", 2)]
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s> </s>", special_tokens=ends)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_composing, r"does not compose a letter and its accent to one character \(NFC\)"),
        (_greedy, r"and takes no spaces: <mask> \(lstrip\)"),
        (_ended, "'</s>', '</s>' after each is left out"),
    ],
)
def test_what_llama_cpp_reads_otherwise_is_said(tmp_path: Path, change: Any, why: str) -> None:
    made = bytelevel()
    change(made)
    save(made, tmp_path, {"bos_token": "<s>", "eos_token": "</s>"})
    said, told = said_of(tmp_path, 400)
    assert said["ggml.model"] == "gpt2"
    assert re.search(f"llama.cpp reads some texts otherwise than the model's own tokenizer.*{why}", "\n".join(told))


def test_more_ends_than_there_are_places_for_are_said(tmp_path: Path) -> None:
    made = bytelevel()
    made.add_special_tokens([f"<|{i}|>" for i in range(4)])
    ids = [made.token_to_id(f"<|{i}|>") for i in range(4)]
    save(made, tmp_path, generation_config={"eos_token_id": ids})
    said, told = said_of(tmp_path, 400)
    assert [said[f"ggml.{name}_token_id"] for name in ("eos", "eot", "eom")] == ids[:3]
    assert told == ["it has places for three tokens that end an answer, and these end one, too: '<|3|>'"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"end_of_word_suffix": "</w>"}, "its BPE has end_of_word_suffix"),
        ({"merges": [["h", "e"], [" ", "x"]]}, "a merge of its BPE has a space"),
    ],
)
def test_a_bpe_of_another_kind_is_left_out(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    data = json.loads(bytelevel().to_str())
    assert why in _unwritable({**data, "model": {**data["model"], **change}}, 400)


def test_a_text_that_is_changed_before_it_is_split_has_no_name() -> None:
    made = bytelevel()
    assert split_name(json.loads(made.to_str())) == "gpt-2"
    made.normalizer = normalizers.Lowercase()
    assert split_name(json.loads(made.to_str())) is None


@pytest.mark.parametrize("kind", ["wordpiece", "sentencepiece", "unigram"])
def test_other_tokenizers_are_left_out(tmp_path: Path, kind: str) -> None:
    KINDS[kind]().save(str(tmp_path / "tokenizer.json"))
    said, told = said_of(tmp_path, 1000)
    assert "is no byte-level BPE" in told[0]
    assert said["ggml.model"] == "none"


@pytest.mark.parametrize(
    ("recipe", "why"),
    [
        (NATIVE, r"llama\.cpp needs a layer with attention.*\(to=gguf\)"),
        ({"overrides": [{"layers": "all", "window": "none"}]}, r"qwen35 is Qwen3\.5's class, not llama \(to=gguf\)"),
        ({}, r"(?s)no checkpoint of Qwen3_5ForCausalLM.*\(to=gguf\)"),
    ],
)
def test_what_llama_cpp_does_not_run_is_refused(tmp_path: Path, recipe: dict[str, Any], why: str) -> None:
    from transformers import LlamaConfig

    LlamaConfig().save_pretrained(tmp_path)
    program = family("llama").canonical
    draft = Draft(tmp_path, program, TOKENS, recipe=make_recipe({**recipe, "window": 8}), described=tmp_path)
    with pytest.raises(UsageError, match=why):
        write_gguf(program, "f16", draft)


@pytest.mark.slow
def test_a_hybrid_as_it_was_is_what_llama_cpp_runs(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", "qwen3-5")
    program = sleepc.convert(model, {"window": 8, "sinks": 2, "overrides": [{"layers": "all", "window": "none"}]})
    with pytest.warns(SleepcWarning, match=WORDS):
        made = program.export(tmp_path / "out", to="gguf", tokens=[i % VOCAB for i in range(64)], dtype="f32")
    assert all(row["ok"] for row in made.report["checks"])


@pytest.mark.filterwarnings("always::sleepc.errors.SleepcWarning")
def test_the_command(native: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, out = tmp_path / "words.txt", tmp_path / "out"
    words.write_text(" ".join(f"w{i}" for i in TOKENS))
    asked = ("export", native.path, "--to", "gguf", "-o", out, "--text", words)
    code, _, error = run_here(capsys, *asked, "--dtype", "q3_k")
    assert code == 2
    assert "unknown dtype 'q3_k'" in error
    code, _, told = run_here(capsys, *asked, "--dtype", "q8_0")
    assert code == 0
    assert "not whole blocks of 32 numbers: written as f16" in " ".join(told.split())
    assert run_here(capsys, "verify", out)[0] == 0
    shown = run_here(capsys, "push", out, "me/model", "--dry-run")[1]
    assert "model.gguf" in shown
    with (out / "model.gguf").open("r+b") as file:
        file.write(b"GGUX")
    assert run_here(capsys, "verify", out)[0] == 1
