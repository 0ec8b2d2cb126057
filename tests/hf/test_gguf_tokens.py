"""The tokenizers of GGUF files give the ids that those of the source models give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors
from tokenizers import pre_tokenizers as pre

pytest.importorskip("gguf", reason="the gguf package is not installed")

from sleepc.hf.gguf_file import GgufFile
from sleepc.hf.gguf_tokens import SPLITS, end_ids, pre_tokenizer, save_tokenizer
from sleepc.hf.tokenizer import Tokenizer as Loaded
from sleepc.hf.tokenizer import load_tokenizer
from tests.hf.ggufs import TOKENS, VOCAB, tiny, write_gguf

TEXT = (
    "Hello, World! It's 12345 o'CLOCK — we'Ll go\r\n\r\n  to   café 3.14\t\tx=[1,2];\n\n\n日本語の文 한국어 and 你好 "
    "2024年!\n #include <a/b>  HTMLParser camelCase ABCdef naïve ½ ²³ … "
    "`code` ~$5 [x](y) «ß»  \n e\u0301\u0302 नमस्ते 🙂🙂 end   "
)
BYTES = pre.ByteLevel(add_prefix_space=False, use_regex=False)
WORDS = pre.ByteLevel(add_prefix_space=False, use_regex=True)  # GPT-2's own


def cut(pattern: str) -> Any:
    return pre.Split(Regex(pattern), "isolated")


CONTRACTED = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
END = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# The pre-tokenizers that the models' own tokenizer.json files have.
OWN = {
    "gpt-2": WORDS,
    "smollm": pre.Sequence([pre.Digits(individual_digits=True), WORDS]),
    "starcoder": pre.Sequence([pre.Digits(individual_digits=True), WORDS]),
    "falcon": pre.Sequence([pre.Punctuation("contiguous"), WORDS, cut("[0-9][0-9][0-9]")]),
    "llama-bpe": pre.Sequence([cut(CONTRACTED + r"\p{N}{1,3}" + END), BYTES]),
    "dbrx": pre.Sequence([cut(CONTRACTED + r"\p{N}{1,3}" + END), BYTES]),
    "qwen2": pre.Sequence([cut(CONTRACTED + r"\p{N}" + END), BYTES]),
    "deepseek-coder": pre.Sequence(
        [
            *(cut(r"[\r\n]"), cut(r"\s?\p{L}+"), cut(r"\s?\p{P}+"), cut("[一-龥ࠀ-一가-퟿]+")),
            *(pre.Digits(individual_digits=True), BYTES),
        ]
    ),
    "deepseek-v3": pre.Sequence(
        [
            *(cut(r"\p{N}{1,3}"), cut("[一-龥぀-ゟ゠-ヿ]+")),  # noqa: RUF001
            cut(
                r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
                r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            ),
            BYTES,
        ]
    ),
}


@pytest.mark.parametrize("name", OWN)
def test_a_text_is_split_as_by_the_model_s_own_tokenizer(name: str) -> None:
    found, wanted = (each.pre_tokenize_str(TEXT) for each in (pre_tokenizer(name), OWN[name]))
    assert [word for word, _ in found] == [word for word, _ in wanted]


def test_kinds_of_splitting_differ_where_they_should() -> None:
    pieces = {name: tuple(word for word, _ in pre_tokenizer(name).pre_tokenize_str(TEXT)) for name in SPLITS}
    assert len(set(pieces.values())) >= 12
    for name, words in pieces.items():
        assert decoders.ByteLevel().decode(list(words)) == TEXT, name


def byte_vocabulary() -> tuple[list[str], list[str]]:
    """Tokens for every byte, and words that need one way of splitting or another."""
    letters = sorted(pre.ByteLevel.alphabet())
    merges = [
        "1 2",
        "12 3",
        "Ġ a",
        "Ġa b",
        "a b",
        "ab c",
        "' L",
        "'L l",
        "= [",
        "x =",
        "\u010a \u010a",
        "\u00c3 \u00a9",
    ]
    whole = ["world"]  # which no merge leads to
    return ["<s>", "</s>", *letters, *(merge.replace(" ", "") for merge in merges), *whole], merges


def source(name: str) -> Tokenizer:
    """The tokenizer that a source model has."""
    tokens, merges = byte_vocabulary()
    vocab = {token: i for i, token in enumerate(tokens)}
    pairs = [(a, b) for a, b in (merge.split(" ") for merge in merges)]
    kind = {"ignore_merges": True} if name == "llama-bpe" else {}
    tokenizer = Tokenizer(models.BPE(vocab, pairs, **kind))
    tokenizer.pre_tokenizer = OWN[name]
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<s>", normalized=False), AddedToken("</s>", normalized=False)])
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    if name == "llama-bpe":  # it begins with its BOS, and the files of it do not say so
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer


def saved(folder: Path, **tokenizer: Any) -> tuple[Loaded, list[str]]:
    """The tokenizer of a file with these keys, and the notes of its reading."""
    target = folder / str(len(list(folder.iterdir())))
    target.mkdir()
    notes = save_tokenizer(GgufFile(write_gguf(tiny("Llama"), folder / "x.gguf", tokenizer=tokenizer)), target)
    return load_tokenizer(target), notes


@pytest.mark.parametrize("name", ["gpt-2", "smollm", "llama-bpe", "qwen2", "deepseek-v3", "falcon"])
def test_ids_are_those_of_the_source_model(tmp_path: Path, name: str) -> None:
    tokens, merges = byte_vocabulary()
    keys = {"ggml.pre": name, "ggml.tokens": tokens, "ggml.merges": merges}
    found, notes = saved(tmp_path, **keys, **{"ggml.token_type": [3, 3] + [1] * (len(tokens) - 2)})
    wanted = source(name)
    assert notes == []
    for text in ("world 123 ab 12345", "x=[1]\n\n ab'LL we'Ll e\u0301", "123123world", ""):
        assert found.encode(text) == wanted.encode(text).ids
        assert found.decode(found.encode(text)) == wanted.decode(wanted.encode(text).ids)


@pytest.mark.parametrize(
    ("value", "said"), [("newest", "tokenizer.ggml.pre = newest"), (None, "no tokenizer.ggml.pre")]
)
def test_an_unknown_way_of_splitting_is_said(tmp_path: Path, value: str | None, said: str) -> None:
    tokenizer, (note,) = saved(tmp_path, **{"ggml.pre": value})
    assert said in note
    assert tokenizer.encode("abcd ef")


@pytest.mark.parametrize("flag", [True, False, None])
def test_begin_of_text_as_the_file_says(tmp_path: Path, flag: bool | None) -> None:
    for name, usual in (("llama-bpe", True), ("gpt-2", False)):
        tokenizer, _ = saved(tmp_path, **{"ggml.pre": name, "ggml.add_bos_token": flag})
        assert (tokenizer.encode("ab")[0] == 0) == (usual if flag is None else flag)


@pytest.mark.parametrize("prefix", [True, False, None])
def test_a_space_before_a_text_as_the_file_says(tmp_path: Path, prefix: bool | None) -> None:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "a", "b", "▁a", "ab", "▁ab"]
    scores = [0.0] * 259 + [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0]
    keys = {
        **{"ggml.model": "llama", "ggml.pre": "default", "ggml.tokens": tokens, "ggml.scores": scores},
        **{"ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * 6, "ggml.add_space_prefix": prefix, "ggml.merges": None},
        **{"ggml.bos_token_id": 1, "ggml.eos_token_id": 2, "ggml.unknown_token_id": 0},
    }
    tokenizer, notes = saved(tmp_path, **keys)
    assert notes == []
    first = tokens.index("ab" if prefix is False else "▁ab")
    assert tokenizer.encode("ab a") == [1, first, tokens.index("▁a")]
    assert tokenizer.decode(tokenizer.encode("ab a")) == "ab a"


def ends(tmp_path: Path, **tokenizer: Any) -> tuple[list[int], list[str]]:
    keys = {f"ggml.{key}": value for key, value in tokenizer.items() if key != "chat_template"}
    keys |= {key: value for key, value in tokenizer.items() if key == "chat_template"}
    return end_ids(GgufFile(write_gguf(tiny("Llama"), tmp_path / "x.gguf", tokenizer=keys)), VOCAB)


def test_every_end_that_the_file_names_ends_an_answer(tmp_path: Path) -> None:
    assert ends(tmp_path) == ([1], [])
    assert ends(tmp_path, eot_token_id=5, eom_token_id=6)[0] == [1, 5, 6]
    assert ends(tmp_path, eot_token_id=1)[0] == [1]
    ids, (note,) = ends(tmp_path, eot_token_id=VOCAB)
    assert ids == [1]
    assert str(VOCAB) in note


def test_the_token_that_closes_a_turn_of_the_template_ends_an_answer(tmp_path: Path) -> None:
    tokens = [*TOKENS[:-2], "<|im_end|>", "<|end|>"]
    kinds = [3, 3] + [1] * (VOCAB - 4) + [3, 3]
    template = "{{ messages[0].content }}<|im_end|>"
    assert ends(tmp_path, tokens=tokens, token_type=kinds, chat_template=template)[0] == [1, VOCAB - 2]
    assert ends(tmp_path, tokens=tokens, token_type=kinds)[0] == [1]  # no template speaks of it
    plain = [3, 3] + [1] * (VOCAB - 2)
    assert ends(tmp_path, tokens=tokens, token_type=plain, chat_template=template)[0] == [1]  # it is text
    several = [*TOKENS[:-2], "<|return|>", "<|end|>"]  # where a message may end before the answer does
    assert ends(tmp_path, tokens=several, token_type=kinds, chat_template="<|end|>")[0] == [1]


def test_a_tokenizer_of_another_kind_is_said_and_the_model_reads_ids(tmp_path: Path) -> None:
    path = write_gguf(tiny("Llama"), tmp_path / "x.gguf", tokenizer={"ggml.model": "bert"})
    (note,) = save_tokenizer(GgufFile(path), tmp_path)
    assert "tokenizer.ggml.model = bert" in note
    assert not (tmp_path / "tokenizer.json").exists()


def test_templates_with_names_and_strange_keys_are_said(tmp_path: Path) -> None:
    keys = {"chat_template": "{{ messages }}", "chat_template.tool_use": "{{ tools }}", "ggml.strange": 1}
    keys |= {"ggml.add_eos_token": True, "ggml.add_sep_token": False}
    path = write_gguf(tiny("Llama"), tmp_path / "x.gguf", tokenizer=keys)
    named, strange = save_tokenizer(GgufFile(path), tmp_path)
    assert "tool_use" in named
    assert strange.endswith(": tokenizer.ggml.strange, tokenizer.ggml.add_eos_token")
    assert (tmp_path / "chat_template.jinja").read_text() == "{{ messages }}"
    assert json.loads((tmp_path / "tokenizer.json").read_text())["model"]["type"] == "BPE"
