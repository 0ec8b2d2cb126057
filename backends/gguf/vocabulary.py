"""A tokenizer as the metadata of a GGUF file. llama.cpp knows how byte-level tokenizers split a text by a name, which
is found by what it does to a text; what it has no words for is said.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sleepc.hf.gguf_tokens import SPLITS, WHOLE_WORDS, pre_tokenizer
from sleepc.hf.json_file import read_object
from sleepc.hf.present import is_there
from sleepc.hf.special_tokens import CONFIG, named_tokens
from sleepc.hf.template import template_sources
from sleepc.hf.tokenizer import MAIN, Tokenizer, load_tokenizer

# What ways of splitting a text differ in: contractions, digits, scripts, marks, spaces, lines, punctuation.
TEXT = (
    "Hello, World! It's 1234567 o'CLOCK: we'Ll go\r\n\r\n  to   café 3.14\t\tx=[1,2];\n\n\n日本語の文 한국어 你好 "
    "2024年!\n #include <a/b> HTMLParser camelCase ABCdef naïve ½ ²³ … `code` ~$5 (y)\n / e\u0301\u0302 नमस्ते 🙂🙂 "
    "end   "
)
NAMED = ("bos", "eos", "unk", "sep", "pad", "mask")  # tokens that a file names
ENDS = ("eot", "eom")  # what may end an answer besides eos
MARKS = "it splits words with marks of their own (vowel signs, accents apart) otherwise"
APPROXIMATE = {
    SPLITS["tekken"]: MARKS,
    SPLITS["gpt-4o"]: MARKS,
    SPLITS["deepseek-llm"]: "it knows fewer letters beyond Latin that spaces may stand before",
}
"""Ways of splitting a text that llama.cpp has spelled otherwise (benchmarks/llamacpp_words.py)."""
OTHER_IDS = "llama.cpp reads some texts otherwise than the model's own tokenizer"


def add_vocabulary(writer: Any, folder: Path, vocab: int) -> list[str]:
    """Add the tokenizer that lies in `folder`, for a model with `vocab` tokens. What is not as it is there, in
    sentences; if it has no form in such a file the first says why, and the file takes token ids only.

    Raises UsageError for files that are damaged.
    """
    reason, tokenizer, data = "there is no tokenizer.json", None, {}
    if is_there(folder / MAIN):
        tokenizer = load_tokenizer(folder)
        data = json.loads(tokenizer.inner.to_str())
        reason = _unwritable(data, vocab)
    split = split_name(data) if not reason else None
    if tokenizer is None or split is None:
        writer.add_tokenizer_model("none")
        reason = reason or "llama.cpp has no name that sleepc knows for how its tokenizer splits a text"
        return [f"it has no tokenizer and takes token ids only: {reason}"]
    tokens, types = _tokens(data, vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in _merges(data)])
    sources = template_sources(folder)
    if sources:
        writer.add_chat_template([{"name": name, "template": text} for name, text in sources.items()])
    approximate = [f"{OTHER_IDS}: {APPROXIMATE[SPLITS[split]]}"] if SPLITS[split] in APPROXIMATE else []
    return [*_different(data), *approximate, *_add_special(writer, tokenizer, vocab)]


def _unwritable(data: dict[str, Any], vocab: int) -> str:
    """Why a tokenizer.json has no form in such a file; empty if it may have one."""
    model, kind = data["model"], data["model"].get("type")
    if kind != "BPE" or model.get("byte_fallback") or "ByteLevel" not in json.dumps(data["decoder"]):
        return f"its tokenizer is no byte-level BPE but {kind}"
    parts = [name for name in ("continuing_subword_prefix", "end_of_word_suffix", "dropout") if model.get(name)]
    if parts:
        return f"its BPE has {', '.join(parts)}, which llama.cpp's has not"
    if any(" " in part for pair in _merges(data) for part in pair):
        return "a merge of its BPE has a space in it"
    top = max([*model["vocab"].values(), *(each["id"] for each in data["added_tokens"])])
    return f"its tokenizer has ids up to {top}, and the model {vocab}" if top >= vocab else ""


def _merges(data: dict[str, Any]) -> list[list[str]]:
    """Pairs, as newer and as older files have them."""
    return [each if isinstance(each, list) else each.split(" ") for each in data["model"]["merges"]]


def split_name(data: dict[str, Any]) -> str | None:
    """The first name under which llama.cpp reads a text as a tokenizer.json does, but for characters that it does not
    compose; None if there is none.
    """
    from tokenizers import Tokenizer

    own = {**data, "added_tokens": [], "post_processor": None}
    mine = Tokenizer.from_str(json.dumps(own))
    text = _composed(TEXT) if _composes(mine) else TEXT
    if mine.pre_tokenizer is None or (mine.normalizer is not None and mine.normalizer.normalize_str(TEXT) != text):
        return None
    wanted, pieces = mine.encode(TEXT).ids, mine.pre_tokenizer.pre_tokenize_str(text)
    for name in SPLITS:
        plain = {**own, "normalizer": None, "model": {**own["model"], "ignore_merges": name in WHOLE_WORDS}}
        found = Tokenizer.from_str(json.dumps(plain))
        found.pre_tokenizer = pre_tokenizer(name)
        same = [word for word, _ in found.pre_tokenizer.pre_tokenize_str(text)] == [word for word, _ in pieces]
        if same and found.encode(text).ids == wanted:
            return name
    return None


def _composes(tokenizer: Any) -> bool:
    """Does it make one character of a letter and its accents?"""
    return tokenizer.normalizer is not None and tokenizer.normalizer.normalize_str(TEXT) == _composed(TEXT)


def _composed(text: str) -> str:
    from tokenizers import normalizers

    return str(normalizers.NFC().normalize_str(text))


def _different(data: dict[str, Any]) -> Iterator[str]:
    """What the tokenizer does, and llama.cpp does not."""
    from tokenizers import Tokenizer, pre_tokenizers

    if _composes(Tokenizer.from_str(json.dumps(data))):
        yield f"{OTHER_IDS}: it does not compose a letter and its accent to one character (NFC)"
    strict = {
        each["content"]: [flag for flag in ("lstrip", "rstrip", "single_word") if each[flag]]
        for each in data["added_tokens"]
    }
    named = [f"{name} ({', '.join(flags)})" for name, flags in strict.items() if flags]
    if named:
        yield f"{OTHER_IDS}: it finds these tokens whatever stands beside them, and takes no spaces: {_some(named)}"
    lacking = [letter for letter in pre_tokenizers.ByteLevel.alphabet() if letter not in data["model"]["vocab"]]
    if lacking and data["model"].get("unk_token") is not None:
        yield f"{OTHER_IDS}: {len(lacking)} bytes have no token, and it leaves them out"


def _add_special(writer: Any, tokenizer: Tokenizer, vocab: int) -> Iterator[str]:
    """Add which tokens begin and end a text or an answer. Yields what cannot be said of them."""
    inner, folder = tokenizer.inner, tokenizer.folder
    named, config = named_tokens(folder, read_object(folder / CONFIG)), read_object(folder / "config.json")
    ids: dict[str, int] = {}
    for name in NAMED:
        known = inner.token_to_id(named[f"{name}_token"]) if f"{name}_token" in named else None
        known = config.get(f"{name}_token_id") if known is None else known
        if type(known) is int and 0 <= known < vocab and inner.id_to_token(known) is not None:
            ids[name] = known
    ends = [i for i in tokenizer.eos_ids if i != ids.get("eos")]
    if ends and "eos" not in ids:
        ids["eos"] = ends.pop(0)
    ids |= dict(zip(ENDS, ends, strict=False))
    for name, i in ids.items():
        getattr(writer, f"add_{name}_token_id")(i)
    if len(ends) > len(ENDS):
        more = _some([repr(inner.id_to_token(i)) for i in ends[len(ENDS) :]])
        yield f"it has places for three tokens that end an answer, and these end one, too: {more}"
    before, after = _around(inner)
    for name, found in (("bos", before), ("eos", after)):
        getattr(writer, f"add_add_{name}_token")(found == [ids.get(name)])
        if found and found != [ids.get(name)]:
            where = "before" if name == "bos" else "after"
            yield f"{OTHER_IDS}: {_some([repr(inner.id_to_token(i)) for i in found])} {where} each is left out"


def _around(inner: Any) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before a text, and after it."""
    plain, whole = inner.encode("a", add_special_tokens=False).ids, inner.encode("a").ids
    at = next(i for i in range(len(whole) + 1) if whole[i : i + len(plain)] == plain)
    return whole[:at], whole[at + len(plain) :]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"


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
