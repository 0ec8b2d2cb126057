"""Tokens read by a model of transformers, at once and with its cache."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor

COMPARED, SINGLE = 33, 8  # the last tokens, whose logits are compared; of these, read one by one with a cache
KEPT = "logits_to_keep"
CACHES = ("cache", "past_key_values")  # what calls give and take, by transformers' version


def calls_of(count: int, *, cached: bool) -> dict[str, list[int]]:
    """How many tokens each call reads, of all, by the name of the check; of the last of them logits are compared."""
    single = min(SINGLE, count - 1)
    return {"one call": [count]} | ({"one by one": [count - single, *[1] * single]} if cached else {})


@torch.no_grad()
def logits_at_once(model: Any, tokens: Sequence[int]) -> Tensor:
    """[T,V] of one call."""
    found: Tensor = model(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits
    return found[0]


@torch.no_grad()
def logits_in(model: Any, tokens: Sequence[int], calls: Sequence[int]) -> Tensor:
    """[n,V] of the last tokens: those of the only call, or of the calls after the first, which read from the cache that
    calls before them left.
    """
    if len(calls) == 1:
        last = min(COMPARED, len(tokens))
        only: Tensor = model(input_ids=torch.tensor([list(tokens)]), use_cache=False, **_of_last(model, last)).logits
        return only[0, -last:]
    found, given = [], dict[str, Any]()
    for part in torch.split(torch.tensor([list(tokens)]), list(calls), 1):
        output = model(input_ids=part, use_cache=True, **_of_last(model, 1), **given)
        name = next(name for name in CACHES if name in output)
        given = {name: output[name]}
        found.append(output.logits[0, -1:])
    return torch.cat(found[1:])


def _of_last(model: Any, count: int) -> dict[str, int]:
    """What asks for the logits of so many tokens alone, if the class knows that: of all they may be much memory."""
    return {KEPT: count} if KEPT in signature(model.forward).parameters else {}
