"""What is done to scores between q kT and the softmax, and all of it as one mask."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import fx

from sleepc.passes.analysis.read_mask import MASKED
from sleepc.passes.lib.emit import aten
from sleepc.passes.lib.values import FlatEmit, val


@dataclass(frozen=True)
class Term:
    """One thing that is done to the scores: a mask of keys that are `seen` or `masked` (bool), numbers `added`, or
    numbers that scores are multiplied with (`times`).
    """

    value: fx.Node
    kind: Literal["seen", "masked", "added", "times"]
    factor: float = 1.0  # what added numbers are multiplied with afterwards, together with the scores


def join(e: FlatEmit, terms: Sequence[Term], heads: int) -> fx.Node | None:
    """All terms, the last that is done first, as one mask: bool if there is only one that is, else numbers to add;
    None if there is none.
    """
    whole: fx.Node | None = None
    for term in terms:
        value = e.unfold(term.value, heads) if val(term.value).dim() == 3 else term.value
        if term.kind == "masked":
            value = e.call(aten.logical_not.default, value)
        if term.kind == "times":
            value = _multiplied(e, value, whole)
        elif term.kind == "added":
            value = e.mul(value, term.factor) if term.factor != 1.0 else value
        elif len(terms) > 1:
            value = e.call(aten.where.Scalar, value, 0.0, -math.inf)
        whole = value if whole is None else e.add(value, whole)
    return whole


def _multiplied(e: FlatEmit, by: fx.Node, after: fx.Node | None) -> fx.Node:
    """Scores times `by`, to which the numbers `after` are added afterwards, as numbers to add: 0 where `by` is 1, -inf
    where it is 0 and what is added hides the key. Elsewhere NaN, which no mask may hold: a product is not a sum.
    """
    lost = e.call(aten.full_like.default, by, math.nan, dtype=torch.float32)
    if after is not None:
        gone = e.call(aten.logical_and.default, e.call(aten.eq.Scalar, by, 0), e.call(aten.le.Scalar, after, MASKED))
        lost = e.call(aten.where.Scalar, gone, -math.inf, math.nan)
    return e.call(aten.where.ScalarSelf, e.call(aten.eq.Scalar, by, 1), 0.0, lost)
