"""Artifacts and state files of older versions: what they hold is what they meant.

tests/older/33436f8.zip was written by that commit: a Llama and a Mistral with a window of its own (13 tokens), both of
one layer, converted with {"window": 8, "sinks": 2}; `logits.npz` has the logits of a session that read `ids`, and
`state.safetensors` its state after 21 of them.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file
from torch import nn

import sleepc
from sleepc.errors import SleepcError, SleepcWarning
from sleepc.progress import silent

READ = 21  # tokens before the state was saved
SHAPE: dict[str, Any] = {
    "vocab_size": 17,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("older")
    with zipfile.ZipFile(Path(__file__).parent / "older" / "33436f8.zip") as file:
        file.extractall(folder)
    return folder


def original(folder: Path) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

    if folder.name == "llama":
        model: nn.Module = LlamaForCausalLM(LlamaConfig(**SHAPE))
    else:
        model = MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=13))
    model.load_state_dict(load_file(folder / "source-00002.safetensors"))
    return model.eval()


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_logits_and_states_are_those_of_then(older: Path, tmp_path: Path, name: str) -> None:
    """Loaded, gone on from its state, and saved by today's code."""
    program, then = sleepc.load(older / name), np.load(older / name / "logits.npz")
    ids = then["ids"].tolist()
    np.testing.assert_allclose(program.session().feed(ids, logits="all")[0], then["logits"], atol=1e-4)
    again = sleepc.load(program.save(tmp_path / "again", standalone=True)).session()
    with pytest.warns(SleepcWarning, match="before state files had a checksum"):
        again.load_state(older / name / "state.safetensors")
    np.testing.assert_allclose(again.feed(ids[READ:], logits="all")[0], then["logits"][READ:], atol=1e-4)


def test_an_older_artifact_is_verified(older: Path) -> None:
    report = sleepc.load(older / "llama").verify(against=original(older / "llama"), tokens=list(range(17)) * 4)
    assert report.ok, [check for check in report.checks if not check.ok]


def test_sinks_that_an_older_version_left_too_far_away_are_said(older: Path, tmp_path: Path) -> None:
    """Also after it was saved again: nothing that today's code writes hides it."""
    sleepc.load(older / "mistral").save(tmp_path / "again", standalone=True)
    for place in (older / "mistral", tmp_path / "again"):
        with pytest.raises(SleepcError, match="made by an older sleepc") as caught:
            sleepc.load(place).verify(against=original(older / "mistral"), tokens=list(range(17)) * 4)
        assert caught.value.where == "layer 0"
        assert caught.value.fix == "Convert the model again."
    program = sleepc.load(older / "mistral")
    program.captured(silent, original(older / "mistral"))
    with pytest.warns(SleepcWarning, match=r"made by an older sleepc.* \(layer 0\). Convert the model again"):
        program.inspect()
