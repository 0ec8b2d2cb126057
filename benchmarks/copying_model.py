"""A tiny Qwen3 that learns here, in some minutes, to say again what it has read; it shows what keeping pairs does to a
model whose recall is known. Two layers are the fewest that can (induction heads, arXiv 2209.11895).

Its streams are four fifths filler, of a few tokens, and one fifth rare tokens. What is told is three to eight rare
tokens in a row, and asked for by their beginning.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sleepc.progress import Progress
from sleepc.tasks.source import StreamSource

VOCABULARY, FILLER, RARE = 512, 32, 0.2
SIZES: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 4096}
SIZES |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None, "tie_word_embeddings": True}
LENGTH = 288  # tokens of the longest stream that it learns from
STEPS, RATE, ROWS = 2000, 3e-3, 8


def make_copying(folder: Path, progress: Progress) -> Path:
    """Train it and save it there, without a tokenizer."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**SIZES))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min((s + 1) / 50, (STEPS - s) / (STEPS / 5), 1.0))
    length = 16.0  # streams grow as they are learned
    for step in range(STEPS):
        progress(f"training on {int(length)} tokens", step / STEPS)
        told = int(torch.randint(3, 9, ()))
        whole = max(int(length) // told, 1) * told
        tokens = _batch(int(ROWS * LENGTH / whole), whole, told)
        place = torch.arange(whole, tokens.shape[1])
        place = place[(place - whole) % told >= 1]  # the first token of what is told can only be guessed
        logits, wanted = model(tokens).logits[:, place - 1], tokens[:, place]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (logits.argmax(-1) == wanted).float().mean() > 0.75:
            length = min(1.05 * length, LENGTH)
    model.save_pretrained(folder)
    return folder


def copying_source(tokens: int, rng: np.random.Generator) -> StreamSource:
    """The stream that it knows; rare tokens are its words."""
    rare = rng.integers(FILLER, VOCABULARY, tokens)
    ids = np.where(rng.random(tokens) < RARE, rare, rng.integers(0, FILLER, tokens))
    return StreamSource(ids, np.arange(FILLER, VOCABULARY))


def _batch(rows: int, length: int, told: int) -> Tensor:
    """Streams [rows, T]: `length` tokens that tell something in half of their places, and all of it again, shuffled."""
    rare = torch.rand(rows, length) < RARE
    stream = torch.where(rare, torch.randint(FILLER, VOCABULARY, rare.shape), torch.randint(FILLER, rare.shape))
    count = max(length // (2 * told), 1)
    places = torch.rand(rows, length // told).argsort(1)[:, :count, None] * told + torch.arange(told)
    said = torch.randint(FILLER, VOCABULARY, (rows, count, told))
    stream.scatter_(1, places.flatten(1), said.flatten(1))
    order = torch.rand(rows, count).argsort(1)[..., None].expand_as(said)
    return torch.cat([stream, said.gather(1, order).flatten(1)], 1)
