"""Processor milliseconds per generated token: `SleepForCausalLM.generate` against `Session.generate`.

One program, greedy; the two take turns in one process, and every token's time is taken where it arrives: in a streamer,
and in the session's loop. What is compared are medians, which leave out the tokens before which there was a sleep.
"""

from __future__ import annotations

import argparse
import time
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from common import Row, arguments, checkpoint_of, machine, report
from transformers.generation.streamers import BaseStreamer

import sleepc
from sleepc.hf import SleepForCausalLM

COLUMNS = ("kind", "rows", "tokens", "session_ms", "generate_ms", "ratio", "ratio_of_means")
TURN = 24  # tokens; the first of each is read with what the turn begins with, and is not counted


class Clock(BaseStreamer):  # type: ignore[misc]
    """When tokens arrived."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def put(self, value: Any) -> None:
        """A token of every row."""
        self.at.append(time.process_time())

    def end(self) -> None:
        """Nothing to do."""

    def times(self) -> list[float]:
        """Milliseconds from token to token."""
        return (1e3 * np.diff(self.at[2:])).tolist()  # before these: the prompt, and the first token


def main() -> None:
    """Run the benchmark."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--turns", type=int, default=12, help=f"of {TURN} tokens each")
    parser.add_argument("--rows", type=int, default=1)
    options = parser.parse_args()
    if options.tiny:
        options.turns = 2
    report([machine(), measure(options)], as_json=options.json, title="generate", columns=COLUMNS)


def measure(options: argparse.Namespace) -> Row:
    """The row of both, in turns; the tokens have to be the same."""
    with checkpoint_of(options) as checkpoint:
        program = sleepc.convert(checkpoint.folder)
        model, session = SleepForCausalLM(program), program.session(options.rows)
        ids = torch.from_numpy(np.random.default_rng(0).integers(0, model.config.vocab_size, (options.rows, 100)))
        session.feed(ids.numpy())
        cache, theirs, ours = None, [], []
        for _ in range(options.turns):
            clock = Clock()
            with torch.inference_mode():
                told = {"max_new_tokens": TURN, "min_new_tokens": TURN, "do_sample": False, "pad_token_id": 0}
                found: Any = model.generate(  # type: ignore[operator]
                    ids, **told, eos_token_id=None, cache=cache, streamer=clock, return_dict_in_generate=True
                )
            new = found.sequences[:, ids.shape[1] :]
            ids, cache, theirs = found.sequences, found.cache, theirs + clock.times()
            clock = Clock()
            clock.put(None)
            for step, wanted in zip(session.generate(TURN), new.T.numpy(), strict=True):
                clock.put(step)
                assert (step == wanted).all(), "the tokens are not the same"
            ours += clock.times()
    return {
        "kind": "hf_generate",
        "rows": options.rows,
        "tokens": len(theirs),
        "session_ms": median(ours),
        "generate_ms": median(theirs),
        "ratio": median(theirs) / median(ours),
        "ratio_of_means": mean(theirs) / mean(ours),
    }


if __name__ == "__main__":
    main()
