"""A tokenizer as the metadata of a GGUF file. llama.cpp knows how byte-level tokenizers split a text by a name, which
is found by what it does to a text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sleepc.hf.gguf_tokens import COMPOSED, SPLITS, WHOLE_WORDS, pre_tokenizer
from sleepc.hf.tokenizer import MAIN

# What ways of splitting a text differ in: contractions, digits, scripts, marks, spaces, lines, punctuation.
TEXT = (
    "Hello, World! It's 1234567 o'CLOCK: we'Ll go\r\n\r\n  to   café 3.14\t\tx=[1,2];\n\n\n日本語の文 한국어 你好 "
    "2024年!\n #include <a/b> HTMLParser ABCdef naïve ½ ²³ … `code` ~$5 (y)\n / e\u0301\u0302 नमस्ते 🙂🙂 end   "
)


def add_vocabulary(writer: Any, folder: Path, vocab: int) -> str | None:
    """Add the tokenizer that lies in `folder`, for a model with `vocab` tokens; why, if it has no form there."""
    reason, data, split = _readable(folder, vocab)
    if reason is not None:
        writer.add_tokenizer_model("none")
        return reason
    from gguf import SpecialVocab

    tokens, types = _tokens(data, vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    SpecialVocab(folder, load_merges=True, n_vocab=vocab).add_to_gguf(writer, quiet=True)
    return None


def _readable(folder: Path, vocab: int) -> tuple[str | None, dict[str, Any], str]:
    """(why not, tokenizer.json, the name of how it splits a text)."""
    if not (folder / MAIN).is_file():
        return "there is no tokenizer.json", {}, ""
    data = json.loads((folder / MAIN).read_text(encoding="utf-8"))
    kind = data["model"].get("type")
    if kind != "BPE" or data["model"].get("byte_fallback") or "ByteLevel" not in json.dumps(data["decoder"]):
        return f"its tokenizer is no byte-level BPE but {kind}", data, ""
    ids = [*data["model"]["vocab"].values(), *(each["id"] for each in data["added_tokens"])]
    if max(ids) >= vocab:
        return f"its tokenizer has ids up to {max(ids)}, and the model {vocab}", data, ""
    split = split_name(data)
    if split is None:
        return "llama.cpp has no name that sleepc knows for how its tokenizer splits a text", data, ""
    return None, data, split


def split_name(data: dict[str, Any]) -> str | None:
    """The first name under which llama.cpp reads a text as a tokenizer.json does; None if there is none."""
    from tokenizers import Tokenizer, normalizers

    own = {**data, "added_tokens": [], "post_processor": None}
    wanted = Tokenizer.from_str(json.dumps(own)).encode(TEXT).ids
    for name in SPLITS:
        plain = {**own, "normalizer": None, "model": {**own["model"], "ignore_merges": name in WHOLE_WORDS}}
        found = Tokenizer.from_str(json.dumps(plain))
        found.pre_tokenizer = pre_tokenizer(name)
        if name in COMPOSED:
            found.normalizer = normalizers.NFC()
        if found.encode(TEXT).ids == wanted:
            return name
    return None


def _tokens(data: dict[str, Any], vocab: int) -> tuple[list[str], list[int]]:
    """Every token by its id, with its type: what is added is control, or a word of the user's; ids without one are
    unused.
    """
    from gguf import TokenType

    tokens, types = [f"[PAD{i}]" for i in range(vocab)], [int(TokenType.UNUSED)] * vocab
    for text, i in data["model"]["vocab"].items():
        tokens[i], types[i] = text, int(TokenType.NORMAL)
    for each in data["added_tokens"]:
        kind = TokenType.CONTROL if each["special"] else TokenType.USER_DEFINED
        tokens[each["id"]], types[each["id"]] = each["content"], int(kind)
    return tokens, types
