"""A checkpoint is loaded by transformers, as any user would load it, and compared with the program that it is of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sleepc.backends.report import Figure
from sleepc.backends.table import find_trainer
from sleepc.hf.load import load_module
from sleepc.hf.resolve import check_folder
from sleepc.ir.program import ProgramGraphs
from sleepc.runtime.session import Session

BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""The largest error of logits, as a share of their scale, by the dtype of the checkpoint."""
BEYOND = 40  # tokens that are read after the first sleep
COMPARED, SINGLE = 33, 8  # the last tokens, whose logits are compared; of these, read one by one with a cache
CACHES = ("cache", "past_key_values")  # what calls give and take, by transformers' version


def tokens_read(program: ProgramGraphs, tokens: Sequence[int]) -> list[int]:
    """Some tokens, across a sleep if the model has the positions for it."""
    most = program.window + BEYOND
    if program.max_positions is not None:
        most = min(most, max(program.max_positions - program.window, 2))
    return list(tokens[:most])


def compare(
    program: ProgramGraphs, folder: Path, tokens: Sequence[int], bound: float, *, cached: bool = True
) -> list[Figure]:
    """Logits of the last tokens, of the program at level STEP and of the checkpoint in `folder`, which may differ by
    `bound`, a share of their scale: read at once, and one after the other if it has a cache.
    """
    read = tokens_read(program, tokens)
    session = Session(find_trainer().steps(program), 1)
    last = min(COMPARED, len(read))
    if len(read) > last:
        session.feed(read[:-last], logits="none")
    wanted = torch.from_numpy(np.asarray(session.feed(read[-last:], logits="all")))[0].double()
    model = load_module(check_folder(str(folder), folder))
    found = {"one call": logits_at_once(model, read)[-last:]}
    if cached:
        found["one by one"] = logits_one_by_one(model, read)
    return [_figure(name, value, wanted[-len(value) :], bound, len(read)) for name, value in found.items()]


def _figure(name: str, found: Tensor, wanted: Tensor, bound: float, count: int) -> Figure:
    error = float((found.double() - wanted).abs().max() / wanted.abs().max())
    return Figure("transformers", f"logits, {name}", error, bound, f"{count} tokens")


@torch.no_grad()
def logits_at_once(model: Any, tokens: Sequence[int]) -> Tensor:
    """[T,V] of one call."""
    found: Tensor = model(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits
    return found[0]


@torch.no_grad()
def logits_one_by_one(model: Any, tokens: Sequence[int]) -> Tensor:
    """[n,V] of the last tokens, each in a call of its own, from the cache that calls before it left."""
    single = min(SINGLE, len(tokens) - 1)
    ids = torch.tensor([list(tokens)])
    output, found = model(input_ids=ids[:, :-single], use_cache=True), []
    for i in range(ids.shape[1] - single, ids.shape[1]):
        name = next(name for name in CACHES if name in output)
        output = model(input_ids=ids[:, i : i + 1], use_cache=True, **{name: output[name]})
        found.append(output.logits[0, -1])
    return torch.stack(found)
