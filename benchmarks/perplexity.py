"""Perplexity of full attention, of a sliding window with sinks, and of the converted model.

Texts of 1,024 tokens each, read from an empty context, taken at even distances from the topics of Python's own
documentation (`pydoc_data.topics`), or from `--text FILE`. The sliding window is the converted program with its
memories off. By distance: how many tokens of the text came before the one that is predicted.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import torch
from common import Row, arguments, checkpoint_of, console, machine, report

import sleepc
from sleepc.api import Program
from sleepc.backends.table import find_backend
from sleepc.errors import UsageError
from sleepc.hf.load import load_module
from sleepc.hf.tokenizer import NoTokenizer
from sleepc.runtime.session import Session
from sleepc.verify.memory_values import without_memories
from sleepc.verify.original import Original

COLUMNS = ("from", "to", "full", "sliding", "converted", "converted/sliding")
BOUNDS = (0, 256, 512, 768, 1024)
Reader = Callable[[list[int]], torch.Tensor]


def main() -> None:
    """Run the benchmark."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--text", type=Path, help="a text file instead of Python's documentation")
    parser.add_argument("--texts", type=int, default=8, help="how many texts")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a text")
    options = parser.parse_args()
    if options.tiny:
        options.texts, options.length = 2, 600
    title = f"perplexity, {options.texts} texts of {options.length} tokens"
    report([machine(), *measure(options)], as_json=options.json, title=title, columns=COLUMNS)


def measure(options: argparse.Namespace) -> list[Row]:
    """A row for each range of distances, and one for all."""
    with checkpoint_of(options) as checkpoint:
        program = sleepc.convert(checkpoint.folder)
        texts = choose_texts(program, options)
        steps, baseline = program.steps(), find_backend().steps(without_memories(program.graphs))
        readers: dict[str, Reader] = {
            "full": _full(Original(load_module(checkpoint))),
            "sliding": lambda ids: _read(Session(baseline), ids),
            "converted": lambda ids: _read(Session(steps), ids),
        }
        losses = {name: np.zeros((len(texts), options.length - 1)) for name in readers}
        for i, ids in enumerate(texts):
            for name, reader in readers.items():
                losses[name][i] = surprise(reader(ids), ids)
            console.log(f"read {i + 1} of {len(texts)} texts")
    length = options.length
    ranges = [(a, min(b, length)) for a, b in pairwise(BOUNDS) if a < length]
    facts = {"kind": "perplexity", "texts": len(texts), "text": str(options.text or "pydoc_data.topics")}
    return [facts | _row(losses, *bounds) for bounds in [*ranges, (0, length)]]


def choose_texts(program: Program, options: argparse.Namespace) -> list[list[int]]:
    """Token ids of the texts; of a model without a tokenizer, random ones."""
    count, length = options.texts, options.length
    try:
        tokenizer = program.tokenizer()
    except NoTokenizer:
        random = np.random.default_rng(0).integers(0, program.graphs.vocab, (count, length))
        return [row.tolist() for row in random]
    text = options.text.read_text() if options.text else "\n\n".join(topics[name] for name in sorted(topics))
    ids = tokenizer.encode(text)
    if len(ids) < count * length:
        raise UsageError(f"{count} texts of {length} tokens need {count * length} tokens, and there are {len(ids)}")
    starts = np.linspace(0, len(ids) - length, count).astype(int)
    return [ids[start : start + length] for start in starts]


def _full(model: Callable[[torch.Tensor], torch.Tensor]) -> Reader:
    return lambda ids: model(torch.tensor([ids]))[0]


def _read(session: Session, ids: list[int]) -> torch.Tensor:
    return torch.from_numpy(session.feed([ids], logits="all")[0])


def surprise(logits: torch.Tensor, ids: list[int]) -> np.ndarray:
    """-log p of every token but the first, [T-1], from logits [T, V]."""
    loss = torch.nn.functional.cross_entropy(logits[:-1].float(), torch.tensor(ids[1:]), reduction="none")
    return loss.double().numpy()


def _row(losses: dict[str, np.ndarray], first: int, last: int) -> Row:
    # entry t - 1 of a text's losses is of the token with t tokens before it
    part = slice(max(first, 1) - 1, last - 1)
    found = {name: math.exp(values[:, part].mean()) for name, values in losses.items()}
    return {"from": first, "to": last, **found, "converted/sliding": found["converted"] / found["sliding"]}


if __name__ == "__main__":
    main()
