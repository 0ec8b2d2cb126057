"""Who sees whom across a KV window: one mask for all layers that see alike, made from positions in embed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from sleepc.ir.types import TensorType
from sleepc.masks import Mask
from sleepc.passes.analysis.find_sites import Site
from sleepc.passes.lib.emit import Emit

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
    takes off the scores of each head ((): nothing).
    """

    window: int
    sinks: int
    own: Mask
    slopes: tuple[float, ...]

    @staticmethod
    def of(site: Site, window: int, sinks: int, *, brought: bool) -> WindowMask:
        """The mask of a layer; its own window does not matter if sinks are `brought` near (key_positions.py)."""
        return WindowMask(window, sinks, site.mask.without_window() if brought else site.mask, site.slopes)

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
