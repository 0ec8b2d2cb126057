"""Milliseconds per token after a long context: the converted model against transformers with its KV cache.

Same weights (float32), same machine, same process; the two take turns, a few tokens at a time, and medians are
compared. The converted model really reads its context. The KV cache of transformers is filled with random keys and
values of the right shape, which take the same time as real ones (`--prefill` computes real ones; minutes at 16k).
Beyond the model's max_position_embeddings its rotary positions are simply counted on. With `--compile` the converted
model is run a second time, by compiled code (docs/performance.md), and all three take turns.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from common import Row, arguments, checkpoint_of, console, machine, numbers, report
from transformers import DynamicCache

import sleepc
from sleepc.hf.load import load_module
from sleepc.runtime.session import Session

COLUMNS = (
    "context",
    "sleepc_ms",
    "sleepc_ms_with_sleep",
    "transformers_ms",
    "ratio",
    "state_bytes",
    "kv_cache_bytes",
)
CHUNK = 8  # tokens of one before the other's turn
PIECE = 512  # tokens of a prefill call
COMPILED = ("context", "sleepc_ms", "compiled_ms", "transformers_ms", "compiled_by_sleepc", "compiled_by_transformers")
WARM = 2
# The argument has another name from transformers 5.40 on; this one is right in all versions that sleepc works with.
warnings.filterwarnings("ignore", message="`past_key_values` is deprecated", category=FutureWarning)


@dataclass
class Original:
    """transformers' model with its KV cache."""

    model: Any
    cache: Any

    def step(self, token: int) -> None:
        """Logits of one token."""
        with torch.inference_mode():
            self.model(torch.tensor([[token]]), past_key_values=self.cache, use_cache=True)

    def fill(self, tokens: np.ndarray, *, real: bool) -> None:
        """Bring the cache to as many tokens as `tokens` [T] has."""
        if real:
            for start in range(0, len(tokens), PIECE):
                piece = torch.from_numpy(tokens[None, start : start + PIECE])
                with torch.inference_mode():
                    self.model(piece, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
            return
        config = self.model.config
        heads, size = config.num_key_value_heads, getattr(config, "head_dim", None)
        size = size or config.hidden_size // config.num_attention_heads
        with torch.inference_mode():
            for layer in range(config.num_hidden_layers):
                self.cache.update(*torch.randn(2, 1, heads, len(tokens), size), layer)

    def bytes(self) -> int:
        """Of the cache's tensors."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.cache.layers)


def main() -> None:
    """Run the benchmark."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--contexts", type=numbers, default="1024,16384", help="lengths of context in tokens")
    parser.add_argument("--tokens", type=int, default=48, help="tokens measured at each context")
    parser.add_argument("--prefill", action="store_true", help="let transformers read the context, too")
    parser.add_argument("--compile", action="store_true", help="measure compiled code beside it")
    options = parser.parse_args()
    if options.tiny:
        options.contexts, options.tokens = [300, 600], 8
    columns = COMPILED if options.compile else COLUMNS
    report([machine(), *measure(options, options.contexts)], as_json=options.json, title="decode, CPU", columns=columns)


def measure(options: argparse.Namespace, contexts: list[int]) -> list[Row]:
    """A row for each context."""
    with checkpoint_of(options) as checkpoint:
        program = sleepc.convert(checkpoint.folder)
        steps = program.steps()
        compiled = program.steps(compile=True, progress=lambda what, _: console.log(what)) if options.compile else None
        model: Any = load_module(checkpoint, dtype="float32", attention="sdpa")
        console.log("converted")
        rows = []
        for context in contexts:
            tokens = np.random.default_rng(0).integers(0, steps.vocab, context + options.tokens + WARM)
            session, original = Session(steps), Original(model, DynamicCache(config=model.config))
            original.fill(tokens[:context], real=options.prefill)
            console.log(f"read {context} tokens")
            other = None if compiled is None else Session(compiled)
            for each in (session, other):
                if each is not None:
                    each.feed(tokens[None, :context])
            row = compare(session, other, original, tokens[context:], context)
            rows.append(row | {"prefill": options.prefill})
        return rows


def compare(session: Session, compiled: Session | None, original: Original, tokens: np.ndarray, context: int) -> Row:
    """All read `tokens`, in turns."""
    ours: list[float] = []
    theirs: list[float] = []
    native: list[float] = []
    steps = [_timed(lambda token: session.feed([[token]]), ours)]
    if compiled is not None:
        steps.append(_timed(lambda token: compiled.feed([[token]]), native))
    steps.append(_timed(original.step, theirs))
    for start in range(0, len(tokens), CHUNK):
        for step in steps:
            for token in tokens[start : start + CHUNK].tolist():
                step(token)
    a, b = median(ours[WARM:]), median(theirs[WARM:])
    asleep = sleep_ms(session)
    c = median(native[WARM:]) if native else None
    more = {} if c is None else {"compiled_ms": c, "compiled_by_sleepc": c / a, "compiled_by_transformers": c / b}
    return more | {
        "kind": "decode_cpu",
        "context": context,
        "tokens": len(ours) - WARM,
        "sleepc_ms": a,
        "sleepc_ms_with_sleep": a + asleep / session.steps.window,
        "sleep_ms": asleep,
        "transformers_ms": b,
        "ratio": a / b,
        "state_bytes": sum(tensor.nbytes for tensor in session.snapshot().state.values()),
        "kv_cache_bytes": original.bytes(),
        "transformers": "sdpa, DynamicCache, float32",
    }


def sleep_ms(session: Session) -> float:
    """Milliseconds of a sleep, median of three (it costs the same for any number of tokens)."""
    times: list[float] = []
    sleep = _timed(lambda token: session.sleep(), times)
    for token in range(3):
        session.feed([[token]])
        sleep(token)
    return median(times)


def _timed(step: Callable[[int], object], times: list[float]) -> Callable[[int], None]:
    def call(token: int) -> None:
        started = time.perf_counter()
        step(token)
        times.append((time.perf_counter() - started) * 1e3)

    return call


if __name__ == "__main__":
    main()
