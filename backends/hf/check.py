"""A checkpoint is loaded by transformers, as any user would load it, and compared with the program that it is of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sleepc.backends.hf.blocks import compare_blocks, parts_of
from sleepc.backends.hf.calls import COMPARED, calls_of, logits_in
from sleepc.backends.report import Figure
from sleepc.backends.table import find_trainer
from sleepc.hf.load import load_module
from sleepc.hf.resolve import check_folder
from sleepc.ir.program import ProgramGraphs
from sleepc.runtime.session import Session

BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""The largest error of logits, as a share of their scale, by the dtype of the checkpoint."""
BEYOND = 40  # tokens that are read after the first sleep


def tokens_read(program: ProgramGraphs, tokens: Sequence[int]) -> list[int]:
    """Some tokens, across a sleep if the model has the positions for it: near the last one it empties the window."""
    most = program.window + BEYOND
    if (last := program.max_positions) is not None:
        most = min(most, max(last - program.window, min(program.window, last)))
    return list(tokens[:most])


def compare(
    program: ProgramGraphs, folder: Path, tokens: Sequence[int], bound: float, *, cached: bool = True
) -> list[Figure]:
    """Logits of the last tokens, of the program at level STEP and of the checkpoint in `folder`, which may differ by
    `bound`, a share of their scale: read at once, and one after the other if it has a cache.

    Of numbers that are rounded to less than float32 errors grow from block to block, by how much a model decides; so
    every block, and the head, is then given what the program's own has read (`blocks.py`).
    """
    read = tokens_read(program, tokens)
    model = load_module(check_folder(str(folder), folder))
    parts = parts_of(model, program) if bound > BOUNDS[torch.float32] else None
    if parts is not None:
        return compare_blocks(program, model, parts, read, bound, calls_of(len(read), cached=cached))
    session = Session(find_trainer().steps(program), 1)
    last = min(COMPARED, len(read))
    if len(read) > last:
        session.feed(read[:-last], logits="none")
    wanted = torch.from_numpy(np.asarray(session.feed(read[-last:], logits="all")))[0].double()
    found = {name: logits_in(model, read, calls) for name, calls in calls_of(len(read), cached=cached).items()}
    return [_figure(name, value, wanted[-len(value) :], bound, len(read)) for name, value in found.items()]


def _figure(name: str, found: Tensor, wanted: Tensor, bound: float, count: int) -> Figure:
    error = float((found.double() - wanted).abs().max() / wanted.abs().max())
    return Figure("transformers", f"logits, {name}", error, bound, f"{count} tokens")
