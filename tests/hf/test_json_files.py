"""The JSON files of a checkpoint: a key that stands in one twice, and numbers that are none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from sleepc.errors import SleepcError, UsageError
from sleepc.hf.finite import check_finite
from sleepc.hf.load import load_module
from sleepc.hf.template import template_sources
from sleepc.hf.tokenizer import load_tokenizer
from sleepc.ir.tensorfile import TensorFile
from sleepc.models import find_model
from sleepc.progress import silent
from sleepc.train.texts import documents
from tests.cli.models import save_model

SHARD, INDEX = "model-00001-of-00001.safetensors", "model.safetensors.index.json"
MORE: dict[str, Any] = {
    "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"},
    "special_tokens_map.json": {"eos_token": {"content": "w2", "lstrip": False}},
    "added_tokens.json": {"<more>": 61},
    "chat_template.json": {"chat_template": "{{ messages[0].content }}"},
}
# A file of a checkpoint, a key in it, and what else stands for that key before it.
TWICE = [
    ("config.json", "rms_norm_eps", 0.5),
    ("config.json", "hidden_size", 32),
    ("config.json", "rope_theta", 7.0),
    (INDEX, "weight_map", {}),
    (INDEX, "model.norm.weight", "gone.safetensors"),
    ("generation_config.json", "eos_token_id", 7),
    ("tokenizer_config.json", "tokenizer_class", "Other"),
    ("special_tokens_map.json", "eos_token", "w3"),
    ("special_tokens_map.json", "lstrip", True),
    ("added_tokens.json", "<more>", 62),
    ("chat_template.json", "chat_template", ""),
    ("tokenizer.json", "added_tokens", []),
    ("tokenizer.json", "w7", 8),
]


def read_all(folder: Path) -> None:
    load_module(find_model(folder, silent))
    load_tokenizer(folder)
    template_sources(folder)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_model(tmp_path_factory.mktemp("model"))
    (folder / "model.safetensors").rename(folder / SHARD)
    MORE[INDEX] = {"weight_map": dict.fromkeys(load_file(folder / SHARD), SHARD)}
    MORE["generation_config.json"] = {"eos_token_id": 2}
    for name, content in MORE.items():
        (folder / name).write_text(json.dumps(content))
    read_all(folder)  # as it is
    return folder


@pytest.mark.parametrize(("name", "key", "first"), TWICE)
def test_a_key_that_stands_twice(saved: Path, tmp_path: Path, name: str, key: str, first: Any) -> None:
    """Python takes the last, others the first, and who edited the file meant one of them."""
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    text, place = (folder / name).read_text(), f"{json.dumps(key)}:"
    assert place in text
    (folder / name).write_text(text.replace(place, f"{place} {json.dumps(first)}, {place}", 1))
    with pytest.raises(UsageError, match=rf"{name} has the key '{key}' twice") as caught:
        read_all(folder)
    assert caught.value.where == str(folder / name)


def test_a_name_that_stands_twice_in_the_header_of_a_file_of_weights(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": load_file(saved / SHARD)["model.norm.weight"]}, path)
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    entry = data[8 : 8 + size].rstrip()[1:-1]
    header = b"{" + entry + b"," + entry + b"}"
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])
    with pytest.raises(SleepcError, match="its header has the key 'a' twice"):
        TensorFile(path)


def test_a_text_that_stands_twice_in_a_row(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "one"}\n{"text": "one", "text": "two", "score": NaN}\n')
    with pytest.raises(UsageError, match="this row has the key 'text' twice"):
        list(map(list, documents([tmp_path / "x.jsonl"])))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", '{"__float__": "NaN"}'])
@pytest.mark.parametrize("field", ["rms_norm_eps", "attention_dropout", "rope_theta", "nobody_s"])
def test_a_number_that_is_not_finite(saved: Path, tmp_path: Path, field: str, number: str) -> None:
    config = json.loads((saved / "config.json").read_text())
    place = f"rope_parameters.{field}" if field in config["rope_parameters"] else field
    (config["rope_parameters"] if place != field else config)[field] = "HERE"
    shutil.copytree(saved, tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(json.dumps(config).replace('"HERE"', number))
    with pytest.raises(UsageError, match=rf"config\.json says {place}: (NaN|-?Infinity), and the numbers of a model"):
        load_module(find_model(tmp_path / "model", silent))


def test_a_limit_that_is_infinite_by_default(tmp_path: Path) -> None:
    """As of models with a state space, whose class has it so."""
    from transformers import BambaConfig, LlavaConfig

    infinite = float("inf")
    check_finite({"time_step_limit": [0.0, infinite]}, BambaConfig, tmp_path)
    for wrong in ([0.0, -infinite], [0.0, float("nan")], [float("-inf"), infinite]):
        with pytest.raises(UsageError, match=r"time_step_limit\[[01]\]: "):
            check_finite({"time_step_limit": wrong}, BambaConfig, tmp_path)
    with pytest.raises(UsageError, match=r"vision_config\.layer_norm_eps: Infinity"):
        check_finite({"vision_config": {"layer_norm_eps": infinite}}, LlavaConfig, tmp_path)
