"""The sleep graph of one block class while it is written: its states, and what the clock tells it of the window."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from sleepc.ir.program import BlockClass
from sleepc.ir.states import find_state, with_role
from sleepc.ir.types import TensorType
from sleepc.passes.lib.emit import Emit, aten
from sleepc.passes.plan import MemoryOptions
from sleepc.passes.rewrite.bound_attention import slots_name

WINDOW_POSITIONS = "window_positions"


@dataclass(frozen=True)
class BlockSleep:
    """`states` are the ports of the class's states by name; `memory` is None if it has no memory. A sleep comes after
    `window` (L) tokens; KV windows have `sinks` + W slots.
    """

    e: Emit
    cls: BlockClass
    states: dict[str, fx.Node]
    memory: MemoryOptions | None
    window: int
    sinks: int

    @property
    def length(self) -> int:
        """W, 0 without a KV window."""
        return kv_length(self.cls, self.sinks)

    def slots(self) -> fx.Node:
        """The slots [B,L] of the tokens since the last sleep in the KV window."""
        return self._port(slots_name(self.length), TensorType(torch.int64, ("B", self.window)))

    def positions(self) -> fx.Node:
        """The positions [B,L] of the tokens since the last sleep, -1 in the places of tokens that were not read."""
        return self._port(WINDOW_POSITIONS, TensorType(torch.int64, ("B", self.window)))

    def stays(self) -> fx.Node:
        """Which slots of the KV window [B,sinks+W] are not evicted."""
        return self._port(stays_name(self.length), TensorType(torch.bool, ("B", self.sinks + self.length)))

    def of_window(self, part: str) -> fx.Node:
        """Keys ("k") or values ("v") [B,Hkv,L,d] of the tokens since the last sleep, as the KV window has them; any in
        the places of tokens that were not read.
        """
        held = find_state(self.cls.states, "kv", part)
        assert held is not None, "neither the record nor a KV window has them"
        _, heads, _, width = held.dims
        index = self.e.call(aten.expand.default, self.e.unsqueeze(self.slots(), 1, -1), [-1, heads, -1, width])
        return self.e.call(aten.gather.default, self.states[held.name], 2, index)

    def record(self) -> dict[str, fx.Node]:
        """What was recorded of the window's tokens, by part."""
        return {s.part: self.states[s.name] for s in with_role(self.cls.states, "record")}

    def _port(self, name: str, type_: TensorType) -> fx.Node:
        return self.e.graph.ports().get(name) or self.e.graph.add_port("input", name, type_)


def kv_length(cls: BlockClass, sinks: int) -> int:
    """The number of slots of the class's KV window besides the sinks, 0 without one."""
    keys = find_state(cls.states, "kv", "k")
    return int(keys.dims[2]) - sinks if keys else 0


def stays_name(length: int) -> str:
    """The name of which slots stay, in KV windows of this length."""
    return f"keep.{length}"
