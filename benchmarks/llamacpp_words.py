"""How llama.cpp reads texts by the tokenizer that `export --to gguf` writes, beside the tokenizer that it is of.

Tokenizers: that of the model (`--model`), and for every way of splitting a text that sleepc knows a name for, one that
is trained here on Python's documentation. Texts: its paragraphs, source code, and lines of random characters of all of
Unicode's planes. Files have a tokenizer and no weights; llama.cpp is in an environment of its own.
"""

from __future__ import annotations

import inspect
import json
import random
import subprocess
import sys
import unicodedata
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from tempfile import TemporaryDirectory
from typing import Any

import gguf
import llamacpp
import peers
from common import Row, arguments, checkpoint_of, console, machine, report
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from sleepc.backends.gguf.vocabulary import add_vocabulary
from sleepc.hf.gguf_tokens import COMPOSED, SPLITS, WHOLE_WORDS, pre_tokenizer

COLUMNS = ("tokenizer", "name", "of", "equal", "texts", "first", "why")
VOCAB = 3000
CHOSEN = (
    "Hello, World! It's 1234567 o'CLOCK: we'Ll go\r\n\r\n  to 3.14\t\tx=[1,2];\n\n\n",
    "日本語の文 한국어 你好 2024年! naïve café ½ ²³ … नमस्ते 🙂🙂👩‍🚀 Ⅻ \u200b\u00a0x",
    "<|im_start|>user\nhi<|im_end|>\n<tool_call>{}<|endoftext|> end   ",
    *("", " ", "\n\n \n", "a" * 50 + "0" * 20, "\u0000\u0001", "  \r\n", "_" * 30),
)
RANGES = ((32, 126), (0xA0, 0x24F), (0x370, 0x5FF), (0x900, 0x97F), (0xE00, 0xE7F), (0x2000, 0x23FF), (0x3040, 0x30FF))
RANGES += ((0x4E00, 0x4FFF), (0xAC00, 0xAFFF), (0x1F300, 0x1F6FF), (0x1D400, 0x1D7FF))


def main() -> None:
    """Run the benchmark."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--llama-env", type=Path, default=Path("build/llama-env"), help="where llama.cpp is built")
    parser.add_argument("--lines", type=int, default=2000, help="random lines")
    options = parser.parse_args()
    rows = [machine()]
    try:
        python = llamacpp.python_of(options.llama_env)
    except peers.CannotBuild as error:
        sys.exit(f"llama.cpp is not there: {error}")
    with TemporaryDirectory(prefix="sleepc-bench-") as scratch:
        rows += measured(python, options, Path(scratch))
    report(rows, as_json=options.json, title="texts in llama.cpp", columns=COLUMNS)


def measured(python: Path, options: Namespace, scratch: Path) -> Iterator[Row]:
    """A row for each tokenizer and kind of text."""
    texts = texts_of(options.lines)
    for name, folder in tokenizers_in(options, scratch):
        console.log(name)
        made = Tokenizer.from_file(str(folder / "tokenizer.json"))
        writer = gguf.GGUFWriter(folder / "words.gguf", "qwen35")
        told = add_vocabulary(writer, folder, made.get_vocab_size() + 5)
        pre = writer.kv_data[0].get("tokenizer.ggml.pre")
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        for kind, some in texts.items():
            row = {"kind": "llamacpp_words", "tokenizer": name, "name": pre.value if pre else None, "of": kind}
            yield {**row, "told": told, **compared(python, folder, made, some)}


def compared(python: Path, folder: Path, made: Tokenizer, texts: list[str]) -> Row:
    """Of how many texts the ids are the same, and the first of which they are not."""
    (folder / "texts.json").write_text(json.dumps(texts))
    worker = Path(__file__).with_name("native_worker.py")
    command = [str(python), str(worker), "words", str(folder / "words.gguf"), str(folder / "texts.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"why": f"failed: {(done.stderr.strip().splitlines() or ['no word'])[-1]}"}
    wanted = [made.encode(text).ids for text in texts]
    other = [text for text, a, b in zip(texts, wanted, json.loads(done.stdout), strict=True) if a != b]
    return {"equal": len(texts) - len(other), "texts": len(texts), "first": ascii(min(other, key=len)) if other else ""}


def tokenizers_in(options: Namespace, scratch: Path) -> Iterator[tuple[str, Path]]:
    """The model's own, and one for each way of splitting; folders with their files."""
    if not options.tiny:
        with checkpoint_of(options) as checkpoint:
            folder = scratch / "own"
            folder.mkdir()
            for path in checkpoint.folder.glob("*token*.json"):
                (folder / path.name).write_bytes(path.read_bytes())
            yield options.model, folder
    seen = set()
    for name, patterns in SPLITS.items():
        key = (patterns, name in COMPOSED, name in WHOLE_WORDS)
        if key not in seen:
            seen.add(key)
            folder = scratch / name
            folder.mkdir()
            trained(name).save(str(folder / "tokenizer.json"))
            (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
            yield f"trained, {name}", folder


def trained(name: str) -> Tokenizer:
    """A tokenizer that splits texts in a way."""
    made = Tokenizer(models.BPE(ignore_merges=name in WHOLE_WORDS))
    made.pre_tokenizer, made.decoder = pre_tokenizer(name), decoders.ByteLevel()
    if name in COMPOSED:
        made.normalizer = normalizers.NFC()
    learned = [*topics.values(), *(CHOSEN * 20), *lines(500, seed=1)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        learned, trainers.BpeTrainer(vocab_size=VOCAB, initial_alphabet=alphabet, show_progress=False)
    )
    made.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    made.add_tokens([AddedToken("<tool_call>", normalized=False)])
    return made


def texts_of(count: int) -> dict[str, list[str]]:
    """Texts by kind."""
    prose = [part for text in topics.values() for part in text.split("\n\n")]
    code = [inspect.getsource(module) for module in (json, random, inspect, subprocess)]
    made = [*CHOSEN, *lines(count, seed=0)]
    composed = [text for text in made if unicodedata.normalize("NFC", text) == text]
    return {"prose and code": [*prose, *code], "any characters": composed, "with accents apart": apart(made)}


def apart(texts: list[str]) -> list[str]:
    """Those that have accents of their own once they are taken apart, so."""
    found = [unicodedata.normalize("NFD", text) for text in texts]
    return [text for text in found if unicodedata.normalize("NFC", text) != text]


def lines(count: int, seed: int) -> list[str]:
    """Random characters, in runs of the same kind, with spaces and line breaks between."""
    rng: Any = random.Random(seed)
    found = []
    for _ in range(count):
        parts = []
        for _ in range(rng.randrange(1, 8)):
            low, high = rng.choice(RANGES)
            parts.append("".join(chr(rng.randint(low, high)) for _ in range(rng.randrange(1, 6))))
            parts.append(rng.choice(("", " ", "  ", "\n", " \n\n", "\t", "'s", "'LL", "3", "2024", ".", "\r\n")))
        found.append("".join(parts))
    return found


if __name__ == "__main__":
    main()
