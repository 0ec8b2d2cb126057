"""Tiny tokenizers of every kind, and the ways in which a model's files say what they leave out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

LETTERS = " \nabcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ<>|/_[].,:?!"
WORDS = ("hi", "the", "of", "user", "assistant", "system", "you", "are", "brief", "what", "is")
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BRACKETS = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] | trim }} [/INST]"
    "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
TURNS = ("<|im_start|>", "<|im_end|>")


def wordlevel() -> Tokenizer:
    words = {word: i for i, word in enumerate(("<unk>", "<s>", "</s>", *WORDS, "\n"))}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made


def wordpiece() -> Tokenizer:
    words = {word: i for i, word in enumerate(("<unk>", "<s>", "</s>", *WORDS, *LETTERS, *(f"##{c}" for c in LETTERS)))}
    made = Tokenizer(models.WordPiece(words, unk_token="<unk>"))
    made.normalizer = normalizers.BertNormalizer(lowercase=False)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    return made


def bytelevel(prefix: bool = False) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {
        word: i for i, word in enumerate(("<unk>", "<s>", "</s>", *alphabet, "he", "hi", "Ġhi", "in", "|>", "</s"))
    }
    merges = [("h", "e"), ("h", "i"), ("Ġ", "hi"), ("i", "n"), ("|", ">")]
    made = Tokenizer(models.BPE({**words, "</": len(words)}, [*merges, ("<", "/"), ("</", "s"), ("</s", ">")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    made.decoder = decoders.ByteLevel()
    return made


def sentencepiece() -> Tokenizer:
    """BPE with a space before every text and bytes for what it has no letters for, as Llama 2's."""
    letters = ["▁", *LETTERS[2:]]
    words = ("<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *letters, "▁h", "▁hi", "hi", "</", "</s")
    merges = [("▁", "h"), ("▁h", "i"), ("h", "i"), ("<", "/"), ("</", "s"), ("</s", ">")]
    vocab = {word: i for i, word in enumerate(words)}
    made = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return made


def unigram() -> Tokenizer:
    """With the control tokens among its pieces, which plain text could be cut into."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("▁hi", -2.0), *((c, -5.0) for c in "▁" + LETTERS[1:])]
    made = Tokenizer(models.Unigram(pieces, 0, False))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.decoder = decoders.Metaspace(prepend_scheme="first")
    return made


KINDS = {
    "wordlevel": wordlevel,
    "wordpiece": wordpiece,
    "bytelevel": bytelevel,
    "sentencepiece": sentencepiece,
    "unigram": unigram,
}


def added(content: str, **flags: bool) -> dict[str, Any]:
    plain = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
    return {"content": content, **plain, "special": True, **flags}


def decoder(made: Tokenizer, *tokens: dict[str, Any]) -> dict[str, Any]:
    """added_tokens_decoder: what is in the vocabulary by its id, the others after its end."""
    size, ids = made.get_vocab_size(), {}
    for token in tokens:
        known = made.token_to_id(token["content"])
        ids[str(size if known is None else known)] = token
        size += known is None
    return ids


def save(made: Tokenizer, folder: Path, stated: dict[str, Any] | None = None, **files: Any) -> Path:
    """tokenizer.json, tokenizer_config.json, and other JSON files by their names without ending."""
    folder.mkdir(exist_ok=True, parents=True)
    made.save(str(folder / "tokenizer.json"))
    own = {"tokenizer_class": "PreTrainedTokenizerFast", **(stated or {})}
    for name, data in {"tokenizer_config": own, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(data))
    return folder


def with_control(made: Tokenizer) -> Tokenizer:
    """With its control tokens in tokenizer.json, and a beginning before every text."""
    made.add_special_tokens([AddedToken(t, normalized=False) for t in ("<unk>", "<s>", "</s>", *TURNS)])
    first = made.token_to_id("<s>")
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", first)])
    return made
