"""What a session marks in the state of a program that keeps pairs, between two steps (sleepc/runtime/pins.py).

`pinned` bool [B,L]: which tokens of this window the next sleep is to keep before all others. `gap.W` i64 [B,sinks+W],
for every length W of a KV window: the number in its stream of a token that attention is not to see in this slot, -1 for
none. It holds as long as the slot has that token.
"""

from __future__ import annotations

import torch
from torch import fx

from sleepc.ir.roles import PINNED
from sleepc.ir.states import StateSpec
from sleepc.passes.lib.emit import Emit, aten


def pinned_spec(window: int) -> StateSpec:
    """Of a program that sleeps every `window` tokens."""
    return StateSpec("pin", PINNED, ("B", window), torch.bool, "overwrite")


def gap_spec(length: int, sinks: int) -> StateSpec:
    """Of KV windows of this length."""
    return StateSpec("gap", str(length), ("B", sinks + length), torch.int64, "overwrite", -1)


def hide(
    e: Emit, mask: fx.Node, gaps: fx.Node, length: int, new: tuple[fx.Node, fx.Node], least: float | None
) -> fx.Node:
    """A mask [B,1 or Hq,T,sinks+W+T] without what is in `gaps`. `new`: the position of the first new token [B], and
    which of them are real [B,T]; `least` is what is added to scores that do not count, None for a mask that is bool.
    """
    position, real = new
    oldest = e.call(aten.clamp.default, e.call(aten.sub.Scalar, position, length), 0)
    seen = e.call(aten.cat.default, [e.call(aten.lt.Tensor, gaps, e.unsqueeze(oldest, 1)), real], 1)
    seen = e.unsqueeze(seen, 1, 1)
    return e.call(aten.logical_and.default, mask, seen) if least is None else e.where(seen, mask, least)
