"""Configurations that a model can be built from and not run with: said before any conversion, with the field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sleepc
from sleepc.capture.own_run import CannotRun, require_run
from sleepc.errors import UsageError
from sleepc.hf.load import load_module, require_answer
from sleepc.models import find_model
from sleepc.progress import silent
from tests.families import make_module

TOKENS = torch.tensor([[1, 2, 3, 4, 5]])


def configured(folder: Path, family: str, field: str, value: Any) -> Path:
    make_module(family, torch.float32).save_pretrained(folder)  # type: ignore[operator]
    config = json.loads((folder / "config.json").read_text())
    rope = config.get("rope_parameters") or {}
    (rope if field in rope else config)[field] = value
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("family", "field", "value", "dtype"),
    [
        ("gemma2", "sliding_window", None, "auto"),
        ("llama", "return_dict", False, "auto"),
        ("opt", "num_attention_heads", -1, "auto"),
        ("gpt-oss", "num_experts_per_tok", -1, "bfloat16"),
    ],
)
def test_the_field_is_named(family: str, field: str, value: Any, dtype: str, tmp_path: Path) -> None:
    folder = configured(tmp_path, family, field, value)
    with pytest.raises(Exception, match=r".") as theirs, torch.no_grad():
        load_module(find_model(folder, silent))(TOKENS, use_cache=False)
    with pytest.raises(CannotRun) as caught:
        sleepc.convert(folder, {"window": 8, "sinks": 2, "dtype": dtype})
    assert f"config.json says {field}: {json.dumps(value)}, with which the model cannot be called" in caught.value.what
    assert type(theirs.value).__name__ in caught.value.reason
    assert dtype != "auto" or str(theirs.value).splitlines()[0] in caught.value.reason
    assert (caught.value.where, caught.value.exit_code) == (str(folder), 2)


@pytest.mark.parametrize(
    ("family", "field", "value", "reason"),
    [
        ("llama", "rms_norm_eps", -1e3, "computes logits that are not finite"),
        ("llama", "rope_theta", 0, "computes logits that are not finite"),
        ("granite", "logits_scaling", 0.0, "computes logits that are not finite"),
        # what the class takes without the field is as wrong
        ("gptj", "rotary_dim", 99, "must match the size of tensor"),
        # without the number of heads, too, it can be built, but not of these files
        ("stablelm", "partial_rotary_factor", 7.0, "must match the size of tensor"),
    ],
)
def test_the_field_is_found_by_trying(family: str, field: str, value: float, reason: str, tmp_path: Path) -> None:
    """Also if a graph is right, and no number comes out of it."""
    folder = configured(tmp_path, family, field, value)
    with pytest.raises(CannotRun) as caught:
        sleepc.inspect(folder) if family == "llama" else sleepc.convert(folder, {"window": 8, "sinks": 2})
    assert f"{field}: {json.dumps(value)}, with which the model cannot be called" in caught.value.what
    assert reason in caught.value.what
    assert (caught.value.where, caught.value.exit_code) == (str(folder), 2)


@pytest.mark.parametrize(("family", "field"), [("falcon", "num_attention_heads"), ("bloom", "n_head")])
def test_a_field_of_a_model_that_cannot_be_built(family: str, field: str, tmp_path: Path) -> None:
    folder = configured(tmp_path, family, field, 3)
    with pytest.raises(UsageError, match=f"config.json says {field}: 3, which transformers cannot build"):
        sleepc.inspect(folder)


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize(
    ("family", "field"), [("gptj", "n_positions"), ("llama", "max_position_embeddings"), ("gpt2", "n_positions")]
)
def test_a_model_of_no_positions(family: str, field: str, value: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"config.json says {field}: {value}, and a model has at least one position"):
        load_module(find_model(configured(tmp_path, family, field, value), silent))


def test_fewer_positions_than_a_question_has(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    small = GPT2Config(vocab_size=61, n_embd=8, n_layer=1, n_head=2, n_positions=3, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(small).save_pretrained(tmp_path)
    found = find_model(tmp_path, silent)
    require_answer(load_module(found), found)


@pytest.mark.parametrize(
    ("family", "field", "value", "words"),
    [
        ("gemma3", "query_pre_attn_scalar", -4, "scales its scores by"),
        ("gemma2", "attn_logit_softcapping", 0.0, "caps its scores at 0"),
    ],
)
def test_scores_that_are_none(family: str, field: str, value: float, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        sleepc.inspect(configured(tmp_path, family, field, value))


class Fails(nn.Module):
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError("no such luck")


def test_a_module_that_fails_by_itself() -> None:
    for call in (lambda model: sleepc.convert(model, {"window": 8}), sleepc.inspect, require_run):
        with pytest.raises(CannotRun, match=r"cannot be called with tokens: its own .*ZeroDivisionError: no such luck"):
            call(Fails())
