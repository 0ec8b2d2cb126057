"""What the benchmarks share: the model they run on, the machine they ran on, JSON lines and tables."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

from sleepc.hf.packaged import PACKAGED, model_named
from sleepc.hf.resolve import Checkpoint, resolve

if TYPE_CHECKING:
    from collections.abc import Iterator

WIDE = 240  # columns of a table in a file or a pipe, where rich would cut it to 80
console = Console(stderr=True, log_path=False)
Row = dict[str, Any]


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help=f"{', '.join(PACKAGED)}, a directory, hub id or GGUF file")
    parser.add_argument("--tiny", action="store_true", help="a tiny random model and few tokens: does it run at all?")
    parser.add_argument("--json", action="store_true", help="JSON lines on standard output instead of a table")
    return parser


def numbers(text: str) -> list[int]:
    """A type of arguments: whole numbers with commas between them."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"not whole numbers with commas between them: {text!r}") from None


def some_of(known: Sequence[str]) -> Callable[[str], list[str]]:
    """A type of arguments: some of these words, with commas between them."""

    def read(text: str) -> list[str]:
        unknown = [part for part in text.split(",") if part not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(map(repr, unknown))} is none of {', '.join(known)}")
        return text.split(",")

    return read


@contextmanager
def checkpoint_of(options: argparse.Namespace) -> Iterator[Checkpoint]:
    """The model to measure. One of the packaged ones is fetched by pip once and kept in the cache folder."""
    with TemporaryDirectory(prefix="sleepc-bench-") as scratch:
        model = make_tiny(Path(scratch) / "tiny") if options.tiny else model_named(options.model, _say)
        yield resolve(model, _say)


def _say(what: str, share: float | None) -> None:
    del share
    console.log(what)


TINY: dict[str, Any] = {"vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096}


def make_tiny(folder: Path) -> Path:
    """A random Llama of two layers, without a tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**TINY)).save_pretrained(folder)
    return folder


def add_letters(folder: Path) -> None:
    """A tokenizer for the tiny model: every ASCII character is a token."""
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split

    tokenizer = Tokenizer(WordLevel({chr(code): code for code in range(TINY["vocab_size"])}, unk_token=" "))
    tokenizer.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.save(str(folder / "tokenizer.json"))


def machine() -> Row:
    """What a figure depends on."""
    packages = {name: version(name) for name in ("torch", "transformers")}
    return {
        "kind": "machine",
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **packages,
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def report(rows: Iterable[Row], *, as_json: bool, title: str, columns: Sequence[str]) -> None:
    """Print rows as JSON lines, or the machine and a table of the rows that have `columns`."""
    if as_json:
        for row in rows:
            print(json.dumps(row), flush=True)
        return
    rows = list(rows)
    out = Console(width=None if sys.stdout.isatty() else WIDE)
    table = Table(title=title)
    for name in columns:
        table.add_column(name, justify="right")
    for row in rows:
        if row["kind"] == "machine":
            out.print(", ".join(f"{k} {v}" for k, v in row.items() if k != "kind"))
        elif columns[0] in row:
            table.add_row(*(_cell(row.get(name, "")) for name in columns))
        else:
            out.print(", ".join(f"{k} {_cell(v)}" for k, v in row.items() if k != "kind"))
    out.print(table)


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
