"""Invariant 10: with memories off, a program that keeps pairs is the original that sees, in every layer, KV head and
query, what was held at that moment, as exact as slots hold it; over five sleeps, with heads that keep much, little and
nothing, in a padded batch. With pins and drops, and in exports: test_pins.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers.modeling_utils import AttentionInterface

from sleepc.ir.program import ProgramGraphs
from sleepc.runtime.session import Session
from sleepc.verify.memory_values import without_memories
from sleepc.verify.rounded import rounded
from sleepc.verify.streams import state_of
from tests.conformance.backends import RUNNABLE, runs
from tests.families import VOCAB, WINDOW, family

SINKS, SLEEPS = 2, 5
UNEQUAL = [[2, 5], [0, 1], [3, 0]]
LENGTHS = (SLEEPS * WINDOW + 5, SLEEPS * WINDOW + 1)


def held(steps: Any, program: ProgramGraphs, tokens: np.ndarray[Any, Any]) -> tuple[Tensor, list[Tensor]]:
    """Logits [B,T,V], and for each layer the mask [B,Hkv,T,T] of what queries see, from the states between sleeps."""
    session, logits = Session(steps, batch=len(tokens)), []
    length = tokens.shape[1]
    token = torch.arange(length)
    past, sinks = token[None] <= token[:, None], token < SINKS
    seen = [torch.zeros(len(tokens), 2, length, length, dtype=torch.bool) for _ in program.layout]
    real = np.arange(length) < np.array(LENGTHS)[:, None]
    for start in range(0, length, WINDOW):
        part = slice(start, min(start + WINDOW, length))
        now = state_of(session)
        for layer, mask in enumerate(seen):
            # since the last sleep, the ring holds the latest WINDOW tokens of each query
            near = (token[part, None] - token[None] < WINDOW) | sinks
            mask[:, :, part] = near & past[part]
            if f"{layer}.kept.position" in now:
                _add_kept(mask, now[f"{layer}.kept.position"], UNEQUAL[layer], token[part])
        logits.append(torch.from_numpy(session.feed(tokens[:, part], mask=real[:, part], logits="all")))
    return torch.cat(logits, 1), seen


def _add_kept(mask: Tensor, positions: Tensor, budget: list[int], queries: Tensor) -> None:
    for row, places in enumerate(positions):
        at = 0
        for head, slots in enumerate(budget):
            for p in places[at : at + slots].tolist():
                far = queries[queries - p >= WINDOW] if p >= 0 else queries[:0]
                mask[row, head, far, p] = True
            at += slots


def original(module: Any, tokens: np.ndarray[Any, Any], seen: list[Tensor], dtype: str) -> Tensor:
    """The model's own logits [B,T,V], its attention given these masks, and of pairs from beyond the window keys and
    values as slots of a `dtype` hold them.
    """

    def attend(layer: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float, **_: Any) -> tuple[Tensor, None]:
        groups = q.shape[1] // k.shape[1]
        see = seen[layer.layer_idx].repeat_interleave(groups, 1)
        k, v, far_k, far_v = (x.repeat_interleave(groups, 1) for x in (k, v, rounded(k, dtype), rounded(v, dtype)))
        token = torch.arange(k.shape[2])
        far = (token[:, None] - token >= WINDOW) & (token >= SINKS)
        scores = torch.where(far, q @ far_k.mT, q @ k.mT) * scaling
        weights = scores.masked_fill(~see, -torch.inf).softmax(-1)
        out = weights.where(far, 0) @ far_v + weights.where(~far, 0) @ v
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register("seen", attend)
    before = module.config._attn_implementation
    module.config._attn_implementation = "seen"
    try:
        with torch.no_grad():
            logits: Tensor = module(input_ids=torch.from_numpy(tokens)).logits
    finally:
        module.config._attn_implementation = before
    return logits


@pytest.mark.parametrize("dtype", ["float", "int8", "int4"])
@pytest.mark.parametrize("backend", RUNNABLE)
def test_logits_are_those_of_the_original_that_sees_what_was_held(backend: str, dtype: str) -> None:
    subject = runs(backend)
    llama = family("llama", subject.dtype)
    step, _ = llama.convert(window=WINDOW, sinks=SINKS, keep={"budgets": UNEQUAL, "dtype": dtype})
    program = without_memories(step)
    tokens = np.random.default_rng(8).integers(0, VOCAB, (2, LENGTHS[0]))
    found, seen = held(subject.load(program), program, tokens)
    wanted = original(llama.module, tokens, seen, dtype)
    for row, length in enumerate(LENGTHS):
        assert float((found[row, :length].double() - wanted[row, :length].double()).abs().max()) < subject.tolerance
    far = torch.arange(LENGTHS[0])[:, None] - torch.arange(LENGTHS[0]) >= WINDOW
    assert all(bool((mask & far)[:, :, :, SINKS:].any()) for mask in seen)  # else nothing was kept
