"""The tokenizer of a GGUF file: transformers builds it; how text is split, what comes before it and which tokens end an
answer is set here.

`tokenizer.ggml.pre` names how byte-level tokenizers split a text before their merges. The patterns are those of the
models' own tokenizer.json files, as llama.cpp has them by that name (src/llama-vocab.cpp).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sleepc.hf.gguf_file import GgufFile

CONTROL = 3  # the type of a token that stands for no text
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{REST}"
QWEN2 = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{REST}"
QWEN35 = (
    rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
SLASHED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}|{SLASHED}"
GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}|{SLASHED}"
)
CJK, KANA = r"[一-龥ࠀ-一가-퟿]+", r"[一-龥぀-ゟ゠-ヿ]+"  # noqa: RUF001
PUNCTUATED = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
SENTENCES = r" ?[^(\s|.,!?…。，、।۔،)]+"  # noqa: RUF001
# Patterns, each of which cuts what the ones before it have left.
SPLITS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "gigachat", "exaone4", "mellum"), (GPT2,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), (r"\p{N}", GPT2)),
    **dict.fromkeys(("minerva-7b", "mellum2"), (r"\p{N}", GPT2)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0", "lfm2"), (LLAMA3,)),
    **dict.fromkeys(("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), (LLAMA3,)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan", "kormo", "grok-2"), (QWEN2,)),
    "qwen35": (QWEN35,),
    "tekken": (TEKKEN,),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "minimax-m2"), (GPT4O,)),
    "falcon": (r"[\p{P}$+<=>^~|`]+", GPT2, "[0-9][0-9][0-9]"),
    "deepseek-llm": (
        *(r"[\r\n]", r"\s?[\p{Lu}\p{Ll}\p{Lt}]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", CJK),  # noqa: RUF001
        r"\p{N}+",
    ),
    "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK, r"\p{N}"),
    **dict.fromkeys(
        ("deepseek-v3", "hunyuan-dense", "joyai-llm"),
        (r"\p{N}{1,3}", KANA, rf"{PUNCTUATED}| ?[\p{{P}}\p{{S}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"),
    ),
    **dict.fromkeys(("bloom", "gpt3-finnish", "poro-chat"), (SENTENCES,)),
    "viking": (SENTENCES, r"\p{N}"),
    "seed-coder": (
        rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
}
LLAMA3_KIND = ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0", "lfm2")
WHOLE_WORDS = (*LLAMA3_KIND, "tekken")  # a word that is a token is that token, whatever the merges say
BEGUN = ("llama-bpe", "llama3", "llama-v3", "pixtral", "tekken")  # begin with BOS if the file does not say
COMPOSED = ("qwen2", "deepseek-r1-qwen", "qwen35")  # their tokenizers normalise to NFC first
# What a file may ask for and is not done, if the value is anything but false.
NOT_DONE = (
    *("tokenizer.ggml.add_eos_token", "tokenizer.ggml.add_sep_token", "tokenizer.ggml.remove_extra_whitespaces"),
    *("tokenizer.ggml.precompiled_charsmap", "tokenizer.huggingface.json"),
)
BUILT = ("gpt2", "llama", "gemma4", "t5")  # the kinds that transformers builds
ENDS = (
    *("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<turn|>", "<|end_of_turn|>", "<|eot|>"),
    *("<|endofturn|>", "<|end_of_text|>", "<|endoftext|>", "<EOT>", "<end_of_utterance>", "<｜end▁of▁sentence｜>"),  # noqa: RUF001
)


def save_tokenizer(file: GgufFile, target: Path) -> list[str]:
    """Save the tokenizer of the file into `target`; notes on what is not as it was in the model's own."""
    model, pre = file.get("tokenizer.ggml.model"), file.get("tokenizer.ggml.pre")
    if model not in BUILT or file.get("tokenizer.ggml.tokens") is None:
        return [f"its tokenizer (tokenizer.ggml.model = {model}) is not understood: the model reads token ids only"]
    from gguf import Keys
    from transformers import AutoTokenizer

    begun = {"add_bos_token": True} if pre in BEGUN and file.get("tokenizer.ggml.add_bos_token") is None else {}
    AutoTokenizer.from_pretrained(
        file.path.parent, gguf_file=file.path.name, local_files_only=True, trust_remote_code=False, **begun
    ).save_pretrained(target)
    notes = []
    if model == "gpt2":
        if pre in SPLITS:
            _split(target / "tokenizer.json", pre)
        else:
            said = f"tokenizer.ggml.pre = {pre}, which is not known" if pre else "no tokenizer.ggml.pre"
            notes.append(f"how its tokenizer splits a text is not known ({said}): as GPT-2 does, which may be wrong")
    if model == "llama" and file.get("tokenizer.ggml.add_space_prefix") is False:
        _without_prefix(target / "tokenizer.json")
    named = [key.removeprefix("tokenizer.chat_template.") for key in file.keys("tokenizer.chat_template.")]
    if named:
        notes.append(f"chat templates that have a name of their own are left out: {', '.join(named)}")
    known = {value for name, value in vars(Keys.Tokenizer).items() if not name.startswith("_")}
    left = [key for key in file.keys("tokenizer.ggml.") if key not in known]
    left += [key for key in NOT_DONE if file.get(key)]
    if left:
        notes.append(f"metadata of the tokenizer that is not carried over: {', '.join(left)}")
    return notes


def pre_tokenizer(pre: str) -> Any:
    """How a text is split under that name of SPLITS: of the `tokenizers` library."""
    from tokenizers import Regex, pre_tokenizers

    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in SPLITS[pre]]
    return pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _split(path: Path, pre: str) -> None:
    """Let the tokenizer split a text as `pre` says."""
    from tokenizers import Tokenizer, normalizers

    data = json.loads(path.read_text(encoding="utf-8"))
    data["model"]["ignore_merges"] = pre in WHOLE_WORDS
    tokenizer = Tokenizer.from_str(json.dumps(data))
    tokenizer.pre_tokenizer = pre_tokenizer(pre)
    if pre in COMPOSED:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.save(str(path))


def _without_prefix(path: Path) -> None:
    """Let the tokenizer put no space before a text, nor take one away from it."""
    data = json.loads(path.read_text(encoding="utf-8"))
    for part in _parts(data["pre_tokenizer"]):
        if part["type"] == "Metaspace":
            part["prepend_scheme"] = "never"
    for name in ("normalizer", "decoder"):
        if isinstance(data[name], dict) and data[name]["type"] == "Sequence":
            kept = [p for p in _parts(data[name]) if p["type"] not in ("Prepend", "Strip")]
            data[name]["normalizers" if name == "normalizer" else "decoders"] = kept
        elif isinstance(data[name], dict) and data[name]["type"] == "Metaspace":
            data[name]["prepend_scheme"] = "never"
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")


def _parts(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A part of a tokenizer's description, or those that it is made of."""
    if part is None:
        return []
    for name in ("pretokenizers", "normalizers", "decoders"):
        if name in part:
            return list(part[name])
    return [part]


def end_ids(file: GgufFile, vocab: int) -> tuple[list[int], list[str]]:
    """(ids that end an answer, notes): what the file names, and control tokens of its template that end a turn."""
    found: list[int] = []
    for name in ("eos", "eot", "eom"):
        if (value := file.get(f"tokenizer.ggml.{name}_token_id")) is not None:
            found.append(int(value))
    tokens = file.get("tokenizer.ggml.tokens") or []
    types = file.get("tokenizer.ggml.token_type") or [CONTROL] * len(tokens)
    template = str(file.get("tokenizer.chat_template", ""))
    ends = {text: i for i, text in enumerate(tokens) if text in ENDS and types[i] == CONTROL and text in template}
    if "<|return|>" in tokens:
        ends.pop("<|end|>", None)  # ends a message there, and another may follow it in the same answer
    ids = list(dict.fromkeys([*found, *ends.values()]))
    beyond = [each for each in ids if not 0 <= each < vocab]
    notes = [f"end tokens beyond the vocabulary of {vocab} are left out: {beyond}"] if beyond else []
    return [each for each in ids if each not in beyond], notes
