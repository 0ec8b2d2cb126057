"""Who sees whom across a KV window: one mask for all layers that see alike, made from positions in embed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from sleepc.ir.types import TensorType
from sleepc.masks import Mask
from sleepc.passes.analysis.find_sites import Site, dims
from sleepc.passes.lib.emit import Emit, aten

MASK = "mask."


def mask_name(number: int) -> str:
    """The name of what embed hands on to layers that see alike."""
    return f"{MASK}{number}"


def is_mask(name: str) -> bool:
    """Is it one of these?"""
    return name.startswith(MASK)


@dataclass(frozen=True)
class WindowMask:
    """What layers see of sinks + `window` slots and the new tokens: `own` is their own mask, `slopes` what distance
    takes off the scores of each head ((): nothing). Where queries add numbers of their own by distance, it is the
    distance itself: one slope of 1.
    """

    window: int
    sinks: int
    own: Mask
    slopes: tuple[float, ...]

    @staticmethod
    def of(site: Site, window: int, sinks: int, *, brought: bool) -> WindowMask:
        """The mask of a layer; its own window does not matter if sinks are `brought` near (key_positions.py)."""
        slopes = site.slopes if site.by_distance is None else (1.0,)
        return WindowMask(window, sinks, site.mask.without_window() if brought else site.mask, slopes)

    def type(self, dtype: torch.dtype) -> TensorType:
        """[B,1,T,sinks+window+T] bool; with slopes numbers of `dtype` to add to the scores, [B,Hq,T,..]."""
        heads = len(self.slopes) or 1
        return TensorType(dtype if self.slopes else torch.bool, ("B", heads, "T", f"T+{self.sinks + self.window}"))

    def emit(self, e: Emit, positions: fx.Node, position: fx.Node, dtype: torch.dtype) -> fx.Node:
        """The mask, from positions [B,T] of the new tokens and position [B] of the first of them."""
        options: dict[str, Any] = {"window": self.window, "sinks": self.sinks, "sees": str(self.own)}
        if not self.slopes:
            return e.ours("window_mask", positions, position, **options)
        return e.ours("window_bias", positions, position, **options, slopes=list(self.slopes), dtype=dtype)


def add_by_distance(e: Emit, numbers: fx.Node, mask: fx.Node, dtype: torch.dtype) -> fx.Node:
    """A mask with one slope of 1, `dtype` [B,1,T,K], with what queries add to scores instead, numbers [B,Hq,T,R], of
    which the last is for R - 1 tokens and more: [B,Hq,T,K].
    """
    heads, last = (int(size) for size in (dims(numbers)[1], dims(numbers)[3]))
    least = torch.finfo(dtype).min
    at = e.cast(e.call(aten.clamp.default, e.neg(mask), 0, last - 1), torch.int64)
    added = e.cast(e.call(aten.gather.default, numbers, 3, e.call(aten.expand.default, at, [-1, heads, -1, -1])), dtype)
    return e.where(e.call(aten.gt.Scalar, mask, least / 2), added, least)
