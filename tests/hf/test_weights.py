"""What a checkpoint's files have and its class needs: read exactly as transformers reads it, or refused by name."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import sleepc as package
from sleepc.backends.onnx.call import Style
from sleepc.backends.onnx.installed import missing_exporter
from sleepc.backends.onnx.steps import OnnxSteps
from sleepc.errors import Refusal, SleepcError, SleepcWarning, UsageError
from sleepc.hf.load import load_module, max_positions
from sleepc.hf.resolve import resolve
from sleepc.runtime.session import Session
from tests.backends.onnx.exports import lower
from tests.families import SMALL, make_module
from tests.same import assert_same_logits, assert_same_program

Tensors = dict[str, torch.Tensor]
Change = Callable[[Tensors], Tensors]
FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
HEAD, NORM, Q = "lm_head.weight", "model.norm.weight", "model.layers.1.self_attn.q_proj.weight"
IDS = torch.arange(1, 21)[None]


def _mixtral() -> nn.Module:
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM(MixtralConfig(**SMALL, num_local_experts=3, num_experts_per_tok=2))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mixtral": _mixtral,
    **{name: partial(make_module, name, torch.float32) for name in ("llama", "llama-tied", "gpt2", "gemma3", "gptj")},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    found: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in found:
            torch.manual_seed(0)
            found[name] = tmp_path_factory.mktemp("saved") / name
            MODELS[name]().save_pretrained(found[name])  # type: ignore[operator]
        return found[name]

    return make


@pytest.fixture
def copy(saved: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """A checkpoint of its own, with other tensors and another configuration where they are given."""

    def make(name: str = "llama", change: Change | None = None, **config: Any) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(saved(name), folder)
        if change is not None:
            save_file(change(load_file(folder / FILE)), folder / FILE, metadata={"format": "pt"})
        configure(folder, **config)
        return folder

    return make


def configure(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def load(folder: Path) -> nn.Module:
    return load_module(resolve(folder, lambda what, share: None))


def theirs(folder: Path, dtype: str = "auto") -> nn.Module:
    """The model as transformers loads it."""
    from transformers import AutoModelForCausalLM

    module: nn.Module = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", trust_remote_code=False
    )
    return module


def same(ours: nn.Module, other: nn.Module) -> bool:
    """All values and all dtypes, and the logits."""
    mine, want = ours.state_dict(), other.state_dict()
    equal = all(mine[key].dtype == value.dtype and torch.equal(mine[key], value) for key, value in want.items())
    with torch.no_grad():
        close = torch.allclose(ours(IDS).logits, other(IDS).logits, atol=1e-5)  # experts are run in another way
        return equal and mine.keys() == want.keys() and close


def without(*names: str) -> Change:
    return lambda tensors: {name: value for name, value in tensors.items() if name not in names}


def plus(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Change:
    return lambda tensors: {**tensors, name: torch.ones(shape, dtype=dtype)}


def with_(name: str, value: torch.Tensor) -> Change:
    return lambda tensors: {**tensors, name: value}


def renamed(before: str, after: str) -> Change:
    return lambda tensors: {name.replace(before, after, 1): value for name, value in tensors.items()}


def wrapped(prefix: str) -> Change:
    return lambda tensors: {prefix + name: value for name, value in tensors.items()}


# ---------------------------------------------------------------------------------------------- names and shapes

EXPERT = "model.layers.0.block_sparse_moe.experts"
MISFITS: dict[str, tuple[str, Change, tuple[str, ...]]] = {
    "no head": ("llama", without(HEAD), ("1 missing (lm_head.weight)", "tie_word_embeddings")),
    "no projection": ("llama", without(Q), (f"1 missing ({Q})",)),
    "no norm": ("llama", without(NORM), (f"1 missing ({NORM})",)),
    "a tied pair lacks both": ("llama-tied", without("model.embed_tokens.weight"), ("missing", "embed_tokens")),
    "no layer": ("gpt2", lambda t: {k: v for k, v in t.items() if ".h.2." not in k}, ("12 missing", ".h.2.")),
    "nothing": ("llama", lambda t: {"other": torch.ones(3)}, ("30 missing", "not used (other)")),
    "a bias too many": ("llama", plus("model.layers.0.self_attn.q_proj.bias", 32), ("q_proj.bias", "1 not used")),
    "a layer too many": ("llama", plus("model.layers.3.mlp.up_proj.weight", 48, 32), ("layers.3.mlp.up_proj",)),
    "a head of its own": ("llama", plus("v_head.weight", 1, 32), ("v_head.weight",)),
    "another shape": ("llama", plus(NORM, 31), (f"{NORM} is [31] in the file, [32] in the model",)),
    "another table": ("llama", plus(HEAD, 70, 32), ("[70, 32] in the file, [61, 32] in the model",)),
    "transposed": ("gpt2", plus("transformer.h.0.attn.c_attn.weight", 96, 32), ("[96, 32] in the file",)),
    "one weight under two names": ("llama", plus("norm.weight", 32), ("norm.weight", "already there")),
    "one expert missing": ("mixtral", without(f"{EXPERT}.1.w1.weight"), ("experts.*.w1.weight is there 5 times of 6",)),
    "no experts": ("mixtral", lambda t: {k: v for k, v in t.items() if ".experts." not in k}, ("missing", "experts")),
    "an expert of another shape": (
        "mixtral",
        plus(f"{EXPERT}.1.w2.weight", 31, 48),
        (f"{EXPERT}.1.w2.weight is [31, 48]",),
    ),
    "an expert too many": ("mixtral", plus(f"{EXPERT}.3.w2.weight", 32, 48), ("experts.down_proj",)),
}


@pytest.mark.parametrize("name", MISFITS)
def test_weights_that_do_not_fit(copy: Callable[..., Path], name: str) -> None:
    model, change, words = MISFITS[name]
    with pytest.raises(UsageError) as caught:
        load(copy(model, change))
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("prefix", "who"),
    [
        ("_orig_mod.", "torch.compile"),
        ("module.", "DataParallel"),
        ("base_model.model.", "peft"),
        ("module._orig_mod.", "torch.compile"),
        ("_fsdp_wrapped_module.", "FSDP"),
        ("student.net.", "a wrapper"),
    ],
)
def test_names_with_the_prefix_of_a_wrapper(copy: Callable[..., Path], prefix: str, who: str) -> None:
    with pytest.raises(UsageError, match=rf"names have '.*' in them, as {who} leaves it; 30 missing"):
        load(copy("llama", wrapped(prefix)))


def test_names_with_a_wrapper_in_the_middle(copy: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match=r"'_orig_mod\.' in them"):
        load(copy("llama", renamed("layers.1.", "layers.1._orig_mod.")))


def test_names_that_an_adapter_left(copy: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match=r"'base_layer\.' in them, as peft leaves it"):
        load(copy("llama", renamed("q_proj.", "q_proj.base_layer.")))


def test_nothing_is_drawn_for_a_whole_model_that_is_missing(
    copy: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaForCausalLM

    def drawn(self: nn.Module) -> None:
        if any(p.device.type != "meta" for p in self.parameters()):
            raise AssertionError("values were drawn")

    monkeypatch.setattr(LlamaForCausalLM, "initialize_weights", drawn)
    with pytest.raises(UsageError, match="30 missing"):
        load(copy("llama", wrapped("module.")))


FREQUENCIES = "model.layers.0.self_attn.rotary_emb.inv_freq"
INVERSE = 1e4 ** -(torch.arange(4) / 4)
TRIANGLE = torch.ones(24, 24).tril()[None, None]

FITS: dict[str, tuple[str, Change]] = {
    "as it was": ("llama", lambda t: t),
    "tied": ("llama-tied", lambda t: t),
    "tied, both in the file": ("llama-tied", lambda t: {**t, HEAD: t["model.embed_tokens.weight"].clone()}),
    "tied, the head alone": ("llama-tied", renamed("model.embed_tokens.weight", HEAD)),
    "without the base's prefix": ("gpt2", renamed("transformer.", "")),
    "rotary frequencies of old": ("llama", with_(FREQUENCIES, INVERSE)),
    "rotary frequencies of few digits": ("llama", with_(FREQUENCIES, INVERSE.bfloat16())),
    "masks of old": ("gpt2", with_("transformer.h.0.attn.bias", TRIANGLE.to(torch.uint8))),
    "masks of numbers": ("gpt2", with_("h.0.attn.bias", TRIANGLE)),
    "a mask's value of old": ("gpt2", with_("transformer.h.1.attn.masked_bias", torch.tensor(-1e4))),
    "positions of old": ("gpt2", with_("transformer.position_ids", torch.arange(24)[None])),
    "merged experts": ("mixtral", lambda t: t),
    "norms in float32, the rest not": (
        "llama",
        lambda t: {k: v if "norm" in k else v.bfloat16() for k, v in t.items()},
    ),
}


@pytest.mark.parametrize("name", FITS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", None])
def test_weights_that_fit_are_those_of_transformers(copy: Callable[..., Path], name: str, dtype: str | None) -> None:
    """Also where the configuration has another dtype than the files, or none."""
    folder = copy(*FITS[name], dtype=dtype)
    assert same(load(folder), theirs(folder))


OTHER_TABLES: dict[str, tuple[str, str, torch.Tensor]] = {
    "frequencies of another base": ("llama", FREQUENCIES, 1e6 ** -(torch.arange(4) / 4)),
    "frequencies of another size": ("llama", FREQUENCIES, INVERSE[:3]),
    "a matrix for a number": ("gpt2", "transformer.h.0.attn.masked_bias", torch.ones(32, 32)),
    "a number that masks nothing": ("gpt2", "h.0.attn.masked_bias", torch.tensor(0.5)),
    "a table that is no mask": ("gpt2", "transformer.h.2.attn.bias", TRIANGLE.flip(-1)),
    "other positions": ("gpt2", "transformer.position_ids", torch.arange(24)[None] + 2),
    "no table of positions": ("gpt2", "transformer.position_ids", torch.rand(24, 32)),
}


@pytest.mark.parametrize("name", OTHER_TABLES)
def test_what_the_model_computes_in_another_way_is_said(copy: Callable[..., Path], name: str) -> None:
    """transformers leaves it out by its name, whatever it holds."""
    model, key, value = OTHER_TABLES[name]
    folder = copy(model, with_(key, value))
    with pytest.warns(
        SleepcWarning, match=f"left out, though .* computes other values in its place: {re.escape(key)}$"
    ):
        ours = load(folder)
    assert same(ours, theirs(folder))


@pytest.mark.parametrize(
    ("config", "want"),
    [
        ({"dtype": "bfloat16"}, torch.bfloat16),
        ({"torch_dtype": "bfloat16"}, torch.bfloat16),
        ({"dtype": "bfloat16", "torch_dtype": "float16"}, torch.bfloat16),
        ({"dtype": None, "torch_dtype": None}, torch.float32),
    ],
)
def test_a_dtype_under_its_two_names(copy: Callable[..., Path], config: dict[str, Any], want: torch.dtype) -> None:
    folder = copy()
    data = {k: v for k, v in json.loads((folder / "config.json").read_text()).items() if k != "dtype"}
    (folder / "config.json").write_text(json.dumps(data | config))
    ours = load(folder)
    assert next(ours.parameters()).dtype == want
    assert same(ours, theirs(folder))


# ---------------------------------------------------------------------------------------------- quantised


def _gptq(tensors: Tensors) -> Tensors:
    packed: Tensors = {}
    for name, value in tensors.items():
        if "_proj.weight" not in name:
            packed[name] = value
            continue
        rows, columns = value.shape
        base = name.removesuffix("weight")
        packed[base + "qweight"] = torch.zeros(columns // 8, rows, dtype=torch.int32)
        packed[base + "qzeros"] = torch.zeros(1, rows // 8, dtype=torch.int32)
        packed[base + "scales"] = torch.ones(1, rows).half()
        packed[base + "g_idx"] = torch.zeros(columns, dtype=torch.int32)
    return packed


PACKED: dict[str, Change] = {
    "GPTQ": _gptq,
    "MLX": lambda t: {**t, Q: torch.zeros(32, 4, dtype=torch.uint32)},
    "whole numbers of the same shape": lambda t: {**t, Q: t[Q].to(torch.int8)},
    "bytes of another shape": lambda t: {**t, Q: torch.zeros(512, 1, dtype=torch.uint8)},
    "eight bits of exponent and fraction": lambda t: {**t, Q: t[Q].to(torch.float8_e4m3fn)},
    "the other eight bits": lambda t: {**t, Q: t[Q].to(torch.float8_e5m2)},
    "packed beside": lambda t: {**without(Q)(t), Q + "_packed": torch.zeros(32, 4, dtype=torch.int32)},
}


@pytest.mark.parametrize("name", PACKED)
def test_quantised_weights_where_nothing_says_so(copy: Callable[..., Path], name: str) -> None:
    with pytest.raises(Refusal, match=r"layers\.\d\.\S*(_proj|g_idx)") as caught:
        load(copy("llama", PACKED[name]))
    assert caught.value.code == "QUANTISED"


@pytest.mark.parametrize("beside", ["quantize_config.json", "quant_config.json", "hf_quant_config.json"])
def test_a_file_beside_names_the_way_and_decides_nothing(copy: Callable[..., Path], beside: str) -> None:
    """Exports of other kinds leave such a file beside plain weights."""
    folder = copy()
    (folder / beside).write_text('{"bits": 4}')
    assert same(load(folder), theirs(folder))
    save_file(_gptq(load_file(folder / FILE)), folder / FILE)
    with pytest.raises(Refusal, match=beside):
        load(folder)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quantization": {"group_size": 64, "bits": 4}}, "4 bits, says quantization"),
        ({"quantization_config": {"quant_method": "hqq"}}, "hqq, says quantization_config"),
        ({"text_config": {"quantization_config": {"quant_method": "fp8"}}}, r"fp8, says text_config\.quant"),
        ({"a": {"b": {"compression_config": {"format": "x"}}}}, r"unknown, says a\.b\.compression_config"),
        ({"quantization_config": {"quant_algo": "NVFP4"}}, "NVFP4"),
        ({"parts": [{"quantization_config": {"quant_method": "awq"}}]}, r"awq, says parts\.quantization_config"),
    ],
)
def test_a_configuration_that_says_quantised_anywhere(
    copy: Callable[..., Path], config: dict[str, Any], words: str
) -> None:
    with pytest.raises(Refusal, match=words) as caught:
        resolve(copy(**config), lambda what, share: None)
    assert caught.value.code == "QUANTISED"


@pytest.mark.parametrize("config", [{"quantization_config": None}, {"quantization": {}}, {"quantization": False}])
def test_a_configuration_that_says_nothing_of_it(copy: Callable[..., Path], config: dict[str, Any]) -> None:
    load(copy(**config))


# ---------------------------------------------------------------------------------------------- which files


def shard(folder: Path, tensors: Tensors | None = None, names: tuple[str, ...] = ("a", "b")) -> dict[str, str]:
    """Two files and an index in place of model.safetensors; what the index says."""
    tensors = tensors or load_file(folder / FILE)
    keys = sorted(tensors)
    parts = {f"{names[0]}.safetensors": keys[::2], f"{names[1]}.safetensors": keys[1::2]}
    for file, inside in parts.items():
        save_file({key: tensors[key] for key in inside}, folder / file)
    places = {key: file for file, inside in parts.items() for key in inside}
    write_index(folder, places)
    return places


def write_index(folder: Path, places: dict[str, Any], name: str = INDEX) -> None:
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def test_shards_are_those_of_transformers(copy: Callable[..., Path]) -> None:
    folder = copy()
    whole = load(folder)
    shard(folder)
    (folder / FILE).unlink()
    assert same(load(folder), whole)


def test_one_file_and_an_index_of_others_are_two_models(copy: Callable[..., Path]) -> None:
    folder = copy()
    shard(folder, {key: value + 1 for key, value in load_file(folder / FILE).items()})
    with pytest.raises(UsageError, match=r"model\.safetensors and .*index\.json \(of a\.safetensors, b\.safetensors\)"):
        load(folder)


def test_one_file_and_its_own_index_are_one(copy: Callable[..., Path]) -> None:
    folder = copy()
    write_index(folder, dict.fromkeys(load_file(folder / FILE), FILE))
    load(folder)


@pytest.mark.parametrize("name", ["consolidated", "model.fp16", "zzz", "shard-00001-model-00001-of-00001"])
def test_other_files_do_not_count(copy: Callable[..., Path], name: str) -> None:
    """Other values, a NaN, a cut file: none is read. transformers itself would take the last one's."""
    folder = copy()
    whole = load(folder)
    other = folder / f"{name}.safetensors"
    save_file({key: torch.full_like(value, torch.nan) for key, value in load_file(folder / FILE).items()}, other)
    assert same(load(folder), whole)
    other.write_bytes(other.read_bytes()[:1000])
    (folder / "pytorch_model.bin").write_bytes(b"no pickle")
    assert same(load(folder), whole)


BAD_INDEX: dict[str, tuple[Callable[[Path, dict[str, str]], object], str]] = {
    "an entry that its shard lacks": (
        lambda f, p: write_index(f, {**p, NORM: {"a.safetensors": "b.safetensors"}.get(p[NORM], "a.safetensors")}),
        rf"{NORM} is in [ab]\.safetensors, which lacks it \([ab]\.safetensors has it\)",
    ),
    "an entry that no shard has": (
        lambda f, p: write_index(f, {**p, "other.weight": "a.safetensors"}),
        r"other\.weight is in a\.safetensors, which lacks it \(no file has it\)",
    ),
    "a name in two shards": (
        lambda f, p: save_file(load_file(f / "a.safetensors") | load_file(f / "b.safetensors"), f / "b.safetensors"),
        r"b\.safetensors and a\.safetensors both have .* more",
    ),
    "a file that is not there": (lambda f, p: (f / "b.safetensors").unlink(), r"b\.safetensors, which is not there"),
    "a file elsewhere": (lambda f, p: write_index(f, {**p, NORM: "../b.safetensors"}), r"\.\./b\.safetensors"),
    "a file by its path": (
        lambda f, p: write_index(f, {**p, NORM: str(f / p[NORM])}),
        "which is not a file of this folder",
    ),
    "a name that is too long": (lambda f, p: write_index(f, {**p, NORM: "a" * 5000}), "a…, which is not there"),
    "a name that is none": (lambda f, p: write_index(f, {**p, NORM: "\ud800\n"}), "surrogates not allowed"),
    "a name of nothing": (lambda f, p: write_index(f, {**p, NORM: ""}), '"", which is'),
    "a file that is a number": (lambda f, p: write_index(f, {**p, NORM: 3}), "does not say which file"),
    "no map": (lambda f, p: (f / INDEX).write_text("{}"), "has no weight_map"),
    "an empty map": (lambda f, p: write_index(f, {}), "does not say"),
    "a list": (lambda f, p: (f / INDEX).write_text('{"weight_map": []}'), "has no weight_map"),
}


@pytest.mark.parametrize("name", BAD_INDEX)
def test_an_index_that_its_shards_do_not_bear_out(copy: Callable[..., Path], name: str) -> None:
    folder = copy()
    places = shard(folder)
    (folder / FILE).unlink()
    spoil, words = BAD_INDEX[name]
    spoil(folder, places)
    with pytest.raises(UsageError, match=words):
        load(folder)


NO_FILES: dict[str, Callable[[Path], object]] = {
    "a link to nothing": lambda path: path.symlink_to("gone"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("what", NO_FILES)
@pytest.mark.parametrize(
    "name",
    [
        FILE,
        INDEX,
        "config.json",
        "adapter_config.json",
        "generation_config.json",
        "chat_template.jinja",
        "tokenizer_config.json",
        "tokenizer.json",
        "tokenizer.model",
    ],
)
def test_what_has_the_name_of_a_file_and_is_none(copy: Callable[..., Path], name: str, what: str) -> None:
    """A cache that lost a file has links to nothing. Said before any work, of the tokenizer's files too."""
    folder = copy()
    (folder / name).unlink(missing_ok=True)
    NO_FILES[what](folder / name)
    with pytest.raises(UsageError, match=rf"{re.escape(name)} is (no file|a link that leads to no file)"):
        load(folder)


def test_shards_without_an_index(copy: Callable[..., Path]) -> None:
    folder = copy()
    shard(folder)
    (folder / FILE).unlink()
    (folder / INDEX).unlink()
    with pytest.raises(UsageError, match=r"neither in model\.safetensors nor .*: there is a\.safetensors, b\.safe"):
        load(folder)


@pytest.mark.parametrize("named", ["other.safetensors", "other.safetensors.index.json"])
def test_files_that_the_configuration_names(copy: Callable[..., Path], named: str) -> None:
    folder = copy(transformers_weights=named)
    tensors = {key: value + 1 for key, value in load_file(folder / FILE).items()}
    save_file(tensors, folder / "other.safetensors")
    write_index(folder, dict.fromkeys(tensors, "other.safetensors"), "other.safetensors.index.json")
    ours = load(folder)
    assert torch.equal(ours.state_dict()[NORM], tensors[NORM])
    assert same(ours, theirs(folder))


@pytest.mark.parametrize("named", ["../model.safetensors", "gone.safetensors", "a" * 5000, 3, ["a"]])
def test_files_that_the_configuration_cannot_name(copy: Callable[..., Path], named: Any) -> None:
    with pytest.raises(UsageError, match="transformers_weights"):
        load(copy(transformers_weights=named))


# ---------------------------------------------------------------------------------------------- adapters


def test_an_adapter_beside_a_model_is_said_not_to_be_applied(copy: Callable[..., Path]) -> None:
    folder = copy()
    alone = theirs(folder)  # with the adapter, transformers would apply it where peft is installed
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base", "peft_type": "LORA"}')
    save_file({"base_model.model.lora_A.weight": torch.ones(2, 2)}, folder / "adapter_model.safetensors")
    with pytest.warns(SleepcWarning, match="org/base is not applied"):
        ours = load(folder)
    assert same(ours, alone)


@pytest.mark.parametrize("with_config", [True, False])
@pytest.mark.parametrize(
    ("said", "base"),
    [('{"base_model_name_or_path": "org/base"}', "org/base"), ("{", "unknown"), ("[" * 100_000, "unknown")],
    ids=["named", "damaged", "deep"],
)
def test_an_adapter_alone(copy: Callable[..., Path], with_config: bool, said: str, base: str) -> None:
    folder = copy()
    (folder / FILE).rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(said)
    if not with_config:
        (folder / "config.json").unlink()
    with pytest.raises(UsageError, match=rf"an adapter of .*{base}.*\n?.*[Mm]erge it"):
        load(folder)


# ---------------------------------------------------------------------------------------------- wrongly tied


EIGHT = IDS[:, :8]


@pytest.fixture(scope="module")
def two_matrices(saved: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint with two matrices, and one with the same whose configuration says that they are one."""
    plain = saved("llama")
    tied = tmp_path_factory.mktemp("tied") / "model"
    shutil.copytree(plain, tied)
    configure(tied, tie_word_embeddings=True)
    return plain, tied


@pytest.fixture(scope="module")
def pair(two_matrices: tuple[Path, Path]) -> tuple[package.Program, package.Program]:
    """Both, converted."""
    first, second = (package.convert(folder, {"window": 8, "sinks": 0}) for folder in two_matrices)
    return first, second


def logits(program: package.Program) -> torch.Tensor:
    return torch.as_tensor(program.session().feed(EIGHT.tolist()))


def logits_of_theirs(folder: Path, dtype: str = "auto") -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = theirs(folder, dtype)(EIGHT).logits[:, -1]
    return found


def test_two_matrices_that_are_said_to_be_tied(
    two_matrices: tuple[Path, Path], pair: tuple[package.Program, package.Program], tmp_path: Path
) -> None:
    """Also where the weights are copied."""
    want = logits_of_theirs(two_matrices[1])
    assert (want - logits_of_theirs(two_matrices[0])).abs().max() < 1e-5
    assert (logits(pair[1]) - want).abs().max() < 1e-5 * want.abs().max()
    assert_same_logits(logits(pair[1]), logits(pair[0]))
    replace(pair[1]).save(tmp_path / "artifact", standalone=True)
    loaded = package.load(tmp_path / "artifact")
    assert_same_program(loaded.graphs, pair[1].graphs)
    assert_same_logits(logits(loaded), logits(pair[1]))


def test_two_matrices_in_another_dtype(two_matrices: tuple[Path, Path]) -> None:
    """Where the code is exported apart from the weights."""
    program = package.convert(two_matrices[1], {"window": 8, "sinks": 0, "dtype": "float64"})
    want = logits_of_theirs(two_matrices[1], "float64")
    assert (logits(program) - want).abs().max() < 1e-5 * want.abs().max()


def test_two_matrices_are_trained_as_two(pair: tuple[package.Program, package.Program], tmp_path: Path) -> None:
    found = []
    for number, converted in enumerate(pair):
        program = replace(converted, graphs=replace(converted.graphs, params=dict(converted.graphs.params)), report={})
        settings: dict[str, Any] = {"scratch": True, "device": "cpu", "batch": 2, "steps": 1}
        settings |= {"set": ["width=4", "states=2", "steps=1"], "work": tmp_path / str(number)}
        program.train("rule110", **settings)
        found.append({key: param.materialise() for key, param in program.graphs.params.items()})
    before = {key: param.materialise() for key, param in pair[0].graphs.params.items()}
    assert sum(not torch.equal(before[key], value) for key, value in found[0].items()) > 20
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


@pytest.mark.skipif(missing_exporter() is not None, reason="onnx is not installed")
@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_two_matrices_are_exported_as_two(
    pair: tuple[package.Program, package.Program], tmp_path: Path, precision: Any
) -> None:
    found = []
    for number, program in enumerate(pair):
        folder = tmp_path / str(number)
        folder.mkdir()
        manifest = lower(program.graphs, folder, Style(precision=precision))
        session = Session(OnnxSteps(folder, manifest, threads=1), 1)
        found.append(torch.as_tensor(session.feed(EIGHT.tolist())))
    assert torch.equal(found[0], found[1])
    if precision == "fp32":
        assert (found[1] - logits(pair[1])).abs().max() < 1e-4


# ---------------------------------------------------------------------------------------------- a checkpoint's own code


@pytest.fixture
def nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*words: object) -> str:
        raise AssertionError(f"a question: {words}")

    monkeypatch.setattr("builtins.input", asked)


MAP = {"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "modeling_x.XForCausalLM"}
ELSEWHERE = {key: f"someone/else--{value}" for key, value in MAP.items()}


def with_code(folder: Path, **config: Any) -> Path:
    """Harmless code beside a checkpoint: a file tells whether it ran."""
    for name in ("configuration_x", "modeling_x", "tokenization_x"):
        (folder / f"{name}.py").write_text(f"open({str(folder / 'ran')!r}, 'w').close()\n")
    configure(folder, **config)
    return folder


@pytest.mark.usefixtures("nobody_asks")
@pytest.mark.parametrize("mapped", [MAP, ELSEWHERE, {"AutoModelForCausalLM": MAP["AutoModelForCausalLM"]}, {}])
@pytest.mark.parametrize("kind", ["of_nobody_s", "Llama", ""])
def test_code_of_a_checkpoint_is_refused(copy: Callable[..., Path], kind: str, mapped: dict[str, str]) -> None:
    folder = with_code(copy(), model_type=kind, auto_map=mapped)
    with pytest.raises(Refusal, match="brings its own code") as caught:
        package.convert(folder)
    assert caught.value.code == "REMOTE_CODE"
    assert not (folder / "ran").exists()


@pytest.mark.usefixtures("nobody_asks")
def test_code_for_a_kind_that_has_no_language_model(copy: Callable[..., Path]) -> None:
    """transformers knows the configuration, and no causal language model of it."""
    folder = with_code(copy(), model_type="vit", auto_map=MAP)
    with pytest.raises(Refusal) as caught:
        load(folder)
    assert caught.value.code == "REMOTE_CODE"
    assert not (folder / "ran").exists()


@pytest.mark.usefixtures("nobody_asks")
@pytest.mark.parametrize("mapped", [MAP, ELSEWHERE])
def test_a_kind_that_transformers_knows_is_its_own(copy: Callable[..., Path], mapped: dict[str, str]) -> None:
    folder = with_code(copy(), auto_map=mapped | {"AutoTokenizer": ["tokenization_x.X", None]})
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(f"open({str(folder / 'ran')!r}, 'w').close()\n")
    ours = load(folder)
    assert type(ours).__module__ == "transformers.models.llama.modeling_llama"
    assert not (folder / "ran").exists()
    assert same(ours, theirs(folder))


# ---------------------------------------------------------------------------------------------- configurations

WRONG_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "layer types too few": ({"layer_types": ["full_attention"]}, r"num_hidden_layers.* \(3\).*layer_types.* \(1\)"),
    "layer types too many": ({"layer_types": ["full_attention"] * 4}, r"num_hidden_layers.*layer_types.* \(4\)"),
    "layer types of no kind": ({"layer_types": ["other"] * 3}, "layer_types"),
    "a size that is text": ({"hidden_size": "32"}, "hidden_size.*expected int, got str"),
    "a limit that is nothing": ({"max_position_embeddings": None}, "max_position_embeddings.*got NoneType"),
    "a limit that is a fraction": ({"max_position_embeddings": 64.5}, "max_position_embeddings.*got float"),
    "a size below nothing": ({"intermediate_size": -1}, "intermediate_size: -1"),
    "a size of nothing": ({"head_dim": 0}, "head_dim: 0"),
    "a function that there is not": ({"hidden_act": "sleep"}, 'hidden_act: "sleep"'),
    "heads that do not divide": ({"num_attention_heads": 5}, "multiple of the number of attention heads"),
    "another vocabulary": ({"vocab_size": 99}, r"\[61, 32\] in the file, \[99, 32\] in the model"),
    "fewer layers": ({"num_hidden_layers": 2}, r"9 not used \(model\.layers\.2\."),
    "more layers": ({"num_hidden_layers": 4}, r"9 missing \(model\.layers\.3\."),
    "biases": ({"attention_bias": True}, r"12 missing \(model\.layers\.0\.self_attn\.k_proj\.bias"),
    "a dtype of whole numbers": ({"dtype": "int8"}, r'dtype: "int8"'),
    "a dtype of nothing": ({"torch_dtype": "auto"}, r'torch_dtype: "auto"'),
    "a dtype inside": ({"text_config": {"dtype": "torch.float32"}}, r'dtype: "torch\.float32"'),
    "text for a part": ({"text_config": "x"}, r'text_config: "x", which transformers cannot build a llama model with'),
    "nothing of a part": ({"rope_parameters": {"rope_theta": None}}, r"rope_parameters\.rope_theta: null, which"),
    "a rope of no kind": (
        {"rope_parameters": {"rope_type": "x", "rope_theta": 1e4}},
        r'rope_parameters\.rope_type: "x"',
    ),
    "scaling that is a number": ({"rope_scaling": 7, "rope_parameters": None}, "rope_parameters' with value 7"),
    "labels": ({"id2label": [1]}, r"id2label: \[1\], which transformers cannot build"),
    "a map of code that is none": ({"auto_map": None}, r"auto_map: null, which has to map classes"),
    "a map of code that is a list": (
        {"auto_map": ["modeling_x.X"]},
        r'auto_map: \["modeling_x\.X"\], which has to map',
    ),
    "a map of code that is true": ({"auto_map": True}, "auto_map: true, which has to map"),
    "half of a character": ({"transformers_weights": "\ud800"}, "surrogates not allowed"),
    "no kind": ({"model_type": None}, "model_type: null"),
    "a kind that is a list": ({"model_type": ["llama"]}, r'model_type: \["llama"\]'),
}


@pytest.mark.parametrize("name", WRONG_CONFIGS)
def test_a_configuration_that_cannot_be_meant(copy: Callable[..., Path], name: str) -> None:
    config, words = WRONG_CONFIGS[name]
    with pytest.raises(UsageError, match=words):
        load(copy(**config))


HUGE: dict[str, tuple[str, dict[str, Any], str]] = {
    "layers": ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers: 1000000000, and the files have 30 tensors"),
    "layers under another name": ("gpt2", {"n_layer": 5000}, "n_layer: 5000, and the files have 40 tensors"),
    "layers whose kinds are counted out": (
        "gemma3",
        {"num_hidden_layers": 10**12, "layer_types": None},
        "num_hidden_layers: 1000000000000, and the files have 28 tensors",
    ),
    "layers inside": (
        "llama",
        {"text_config": {"num_hidden_layers": 10**9}},
        r"text_config\.num_hidden_layers: 10{9}, and",
    ),
    "layers within reach": (
        "llama",
        {"num_hidden_layers": 1000},
        r"\(num_hidden_layers: 1000\) has more than 1120 weights",
    ),
    "experts": ("mixtral", {"num_local_experts": 10**7}, "num_local_experts: 10000000, and the files have 35 tensors"),
    "labels": ("llama", {"num_labels": 10**10}, "num_labels: 10000000000, and"),
    "words": ("llama", {"vocab_size": 10**12}, r"\[61, 32\] in the file, \[1000000000000, 32\] in the model"),
    "width": ("llama", {"hidden_size": 10**12}, r"30 of another shape .*\[61, 1000000000000\] in the model"),
    "positions": (
        "gpt2",
        {"n_positions": 10**12},
        r"wpe\.weight is \[24, 32\] in the file, \[10{12}, 32\] in the model",
    ),
    "heads": ("llama", {"num_key_value_heads": 10**12}, r"k_proj\.weight is \[16, 32\] in the file, \[80{12}, 32\]"),
    "more numbers than can be counted": (
        "gpt2",
        {"n_embd": 10**12},
        "n_embd: 1000000000000, which transformers cannot",
    ),
    "more than a word": (
        "llama",
        {"max_position_embeddings": 10**30},
        "max_position_embeddings: 10{30}, which is larger",
    ),
    "less than a word": ("gemma3", {"sliding_window": -(10**30)}, "sliding_window: -10{30}, which is larger"),
}


@pytest.mark.parametrize("name", HUGE)
def test_a_model_that_its_files_cannot_be_is_not_built(
    copy: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """There may be no time, and no memory, to find out that weights are missing."""
    real = torch.empty_like

    def empty_like(like: torch.Tensor, **options: Any) -> torch.Tensor:
        made = real(like, **options)
        assert made.is_meta or made.numel() < 1 << 20, "memory was taken"
        return made

    monkeypatch.setattr(torch, "empty_like", empty_like)
    model, config, words = HUGE[name]
    with pytest.raises(UsageError, match=words):
        load(copy(model, **config))


def test_a_table_that_is_computed_and_out_of_proportion(copy: Callable[..., Path]) -> None:
    """No weight has this size: the model would fill it for itself."""
    with pytest.raises(UsageError, match=r"n_positions: 1000000000\) asks for a table of \[1000000000, 4\]"):
        load(copy("gptj", n_positions=10**9))


@pytest.mark.parametrize("model_type", ["of_nobody_s", "vit"])
def test_a_kind_that_transformers_does_not_know(copy: Callable[..., Path], model_type: str) -> None:
    with pytest.raises(SleepcError, match=model_type):
        load(copy(model_type=model_type))


RIGHT_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "a head's size that is nothing": ("llama", {"head_dim": None}),
    "layer types that are nothing": ("gemma3", {"layer_types": None}),
    "layer types": ("gemma3", {"layer_types": ["full_attention", "sliding_attention"]}),
    "scaled positions": (
        "llama",
        {"rope_parameters": None, "rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}},
    ),
    "one rope per kind of layer": (
        "gemma3",
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e2},
            }
        },
    ),
}


@pytest.mark.parametrize("name", RIGHT_CONFIGS)
def test_a_configuration_as_transformers_reads_it(copy: Callable[..., Path], name: str) -> None:
    model, config = RIGHT_CONFIGS[name]
    folder = copy(model, **config)
    assert same(load(folder), theirs(folder))


def test_a_conversion_with_one_rope_per_kind_of_layer(copy: Callable[..., Path]) -> None:
    """All files but the one that is meant may be anything, also while the weights are hashed and found again."""
    model, config = RIGHT_CONFIGS["one rope per kind of layer"]
    folder = copy(model, **config)
    (folder / "consolidated.safetensors").write_bytes(b"cut")
    program = package.convert(folder, {"window": 32, "sinks": 0})
    with torch.no_grad():
        want = theirs(folder)(IDS).logits[:, -1]
    assert (torch.as_tensor(program.session().feed(IDS.tolist())) - want).abs().max() < 1e-5 * want.abs().max()
    params = program.canonical.params.values() if program.canonical else ()
    assert sum(getattr(param, "file", None) == folder / FILE for param in params) >= len(load_file(folder / FILE))


# ---------------------------------------------------------------------------------------------- more than language

TEXT: dict[str, Any] = {**SMALL, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
VISION: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION |= {"image_size": 16, "patch_size": 8}


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of pictures and text, whose language model is a class of its own."""
    from transformers import Llama4Config, Llama4ForConditionalGeneration

    sizes = {"vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32}
    text = {**TEXT, "num_local_experts": 2, "intermediate_size_mlp": 48}
    folder = tmp_path_factory.mktemp("seeing") / "model"
    Llama4ForConditionalGeneration(Llama4Config(text_config=text, vision_config={**VISION, **sizes})).save_pretrained(
        folder
    )
    return folder


def test_what_is_left_out_of_a_larger_model_is_said(seeing: Path) -> None:
    with pytest.warns(SleepcWarning, match=r"multi_modal_projector \(1 tensors\), vision_model \(\d+ tensors\)"):
        ours = load(seeing)
    assert type(ours).__name__ == "Llama4ForCausalLM"
    assert same(ours, theirs(seeing))


@pytest.mark.parametrize("name", ["language_model.model.layers.0.self_attn.q_proj.bias", "language_model.lm_head.bias"])
def test_a_weight_of_the_language_model_is_not_left_out(seeing: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(seeing, folder)
    save_file({**load_file(folder / FILE), name: torch.ones(32)}, folder / FILE)
    with pytest.raises(UsageError, match=rf"1 not used \({name}\)"):
        load(folder)


def test_the_limit_of_positions_stands_inside(tmp_path: Path) -> None:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    config = Gemma3Config(text_config=TEXT, vision_config=VISION, mm_tokens_per_image=4)
    Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = load(tmp_path / "model")
    assert max_positions(ours.config) == TEXT["max_position_embeddings"]
    assert same(ours, theirs(tmp_path / "model"))
