"""Classes of transformers that read a text otherwise than the tokenizer.json beside them."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers
from transformers import AutoTokenizer

from sleepc import convert
from sleepc.errors import SleepcWarning
from sleepc.hf.class_tokenizer import class_reads_otherwise
from sleepc.hf.tokenizer import load_tokenizer
from tests.cli.models import save_model
from tests.hf.tokenizer_kinds import KINDS, save


def without_unknown() -> Tokenizer:
    """It has no token for most texts, and fails at them."""
    return Tokenizer(models.WordLevel({"<s>": 0, "hi": 1}, unk_token="<gone>"))


def capitals() -> Tokenizer:
    made = KINDS["bytelevel"]()
    made.normalizer = normalizers.Lowercase()
    return made


@pytest.mark.parametrize(
    ("made", "config", "differs"),
    [
        (KINDS["sentencepiece"], {"tokenizer_class": "LlamaTokenizer"}, True),  # a space after each control token
        (capitals, {"tokenizer_class": "GPT2Tokenizer"}, True),
        (KINDS["bytelevel"], {"tokenizer_class": "GPT2Tokenizer"}, False),
        (KINDS["sentencepiece"], {"tokenizer_class": "PreTrainedTokenizerFast"}, False),
        (KINDS["bytelevel"], {"tokenizer_class": "OfNobody"}, False),
        (without_unknown, {"tokenizer_class": "PreTrainedTokenizerFast"}, False),
        (KINDS["sentencepiece"], {}, False),
    ],
)
def test_what_they_read_otherwise_is_said(made: Any, config: dict[str, Any], differs: bool, tmp_path: Path) -> None:
    folder = save(made(), tmp_path, {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", **config})
    said = class_reads_otherwise(folder)
    assert (said is not None) == differs
    if said is not None:
        text = ast.literal_eval(said.split(" encodes ")[1].split(" with ")[0])
        theirs = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        assert (
            theirs(text, add_special_tokens=False).input_ids
            != load_tokenizer(folder).inner.encode(text, add_special_tokens=False).ids
        )
        assert f"transformers' {config['tokenizer_class']}" in said


def test_a_conversion_says_it(tmp_path: Path) -> None:
    folder = save_model(tmp_path)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    with pytest.warns(SleepcWarning, match=r"transformers' GPT2Tokenizer encodes .The year 2026"):
        convert(folder, {"window": 8, "sinks": 2})
