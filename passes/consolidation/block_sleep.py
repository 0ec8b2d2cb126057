"""The sleep graph of one block class while it is written: its states, and what the clock tells it of the window."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import fx

from sleepc.ir.program import SOFT, BlockClass
from sleepc.ir.roles import NOTHING
from sleepc.ir.states import find_state, with_role
from sleepc.ir.types import TensorType
from sleepc.passes.consolidation.soft_tokens import PLACE, TOKEN
from sleepc.passes.lib.emit import Emit, aten
from sleepc.passes.plan import MemoryOptions
from sleepc.passes.rewrite.bound_attention import slots_name
from sleepc.passes.rewrite.kept_pairs import slot_specs

# What the clock tells sleep graphs, if one asks.
WINDOW_POSITIONS = "window_positions"
MODEL_POSITIONS = "model_positions"
MODEL_POSITION = "model_position"
MOVED = "moved"
WINDOW_PINNED = "window_pinned"


@dataclass(frozen=True)
class Leaving:
    """What may get into slots in a sleep, n pairs of every KV head: k [B,Hkv,n,d_k] before positions, v [B,Hkv,n,d_v];
    `place` [B,n] is their positions as the model counts, `token` [B,n] as numbers of the stream, -1 for none; `score`
    [B,Hkv,n], NOTHING for what may not be kept. `more` [B,Hkv,n,..]: other parts that slots hold.
    """

    k: fx.Node
    v: fx.Node
    place: fx.Node
    token: fx.Node
    score: fx.Node
    count: int
    more: dict[str, fx.Node] = field(default_factory=dict)


@dataclass(frozen=True)
class BlockSleep:
    """`states` are the ports of the class's states by name; `memory` is None if it has no memory. A sleep comes after
    `window` (L) tokens; KV windows have `sinks` + W slots. `renumbers`: may a sleep make the model count anew?
    `resets`: may one at the model's last position empty window and slots? `evicts`: may one empty the window, there or
    anywhere? `dropped`: what is written in place of the window's record, where pairs are kept. `soft`: how many soft
    tokens the program makes of the window.
    """

    e: Emit
    cls: BlockClass
    states: dict[str, fx.Node]
    memory: MemoryOptions | None
    window: int
    sinks: int
    renumbers: bool
    resets: bool
    evicts: bool
    dropped: dict[str, fx.Node] | None = None
    soft: int = 0

    @property
    def length(self) -> int:
        """W, 0 without a KV window."""
        return kv_length(self.cls, self.sinks)

    @property
    def kv_heads(self) -> int:
        """Hkv of the KV window, 0 without one."""
        keys = find_state(self.cls.states, "kv", "k")
        return int(keys.dims[1]) if keys else 0

    def slots(self) -> fx.Node:
        """The slots [B,L] of the tokens since the last sleep in the KV window."""
        return self._port(slots_name(self.length), TensorType(torch.int64, ("B", self.window)))

    def positions(self) -> fx.Node:
        """The positions [B,L] of the tokens since the last sleep, -1 in places whose token was not read."""
        return self._port(WINDOW_POSITIONS, TensorType(torch.int64, ("B", self.window)))

    def model_positions(self) -> fx.Node:
        """The same as the model counted them until this sleep; [B,L], -1."""
        return self._port(MODEL_POSITIONS, TensorType(torch.int64, ("B", self.window)))

    def moved(self) -> fx.Node | None:
        """By how much less the model counts after this sleep [B]; None if the program never renumbers."""
        return self._port(MOVED, TensorType(torch.int64, ("B",))) if self.renumbers else None

    def ring_start(self) -> fx.Node:
        """The position of the oldest token in the ring [B], as the model counted it until this sleep."""
        after = self._port(MODEL_POSITION, TensorType(torch.int64, ("B",)))
        return self.e.call(aten.sub.Scalar, after, self.length)

    def pinned(self) -> fx.Node:
        """Which of the tokens since the last sleep [B,L] are to be kept before all others."""
        return self._port(WINDOW_PINNED, TensorType(torch.bool, ("B", self.window)))

    def gaps(self) -> fx.Node:
        """Which of them [B,L] attention does not see any more."""
        return self._port(gaps_name(self.length), TensorType(torch.bool, ("B", self.window)))

    def stays(self) -> fx.Node:
        """Which slots of the KV window [B,sinks+W] are not evicted."""
        return self._port(stays_name(self.length), TensorType(torch.bool, ("B", self.sinks + self.length)))

    def ring_stays(self) -> fx.Node:
        """Does the ring stay [B]? All of it does, or nothing."""
        return self.e.call(aten.select.int, self.stays(), 1, self.sinks)

    def of_window(self, part: str) -> fx.Node:
        """Keys ("k") or values ("v") [B,Hkv,L,d] of the tokens since the last sleep, as the KV window has them; any
        values in places whose token was not read.
        """
        held = find_state(self.cls.states, "kv", part)
        assert held is not None, "neither the record nor a KV window has them"
        _, heads, _, width = held.dims
        index = self.e.call(aten.expand.default, self.e.unsqueeze(self.slots(), 1, -1), [-1, heads, -1, width])
        return self.e.call(aten.gather.default, self.states[held.name], 2, index)

    def soft_tokens(self) -> Leaving:
        """The soft tokens that the encoder made of the window: the newest are to be kept."""
        e, specs = self.e, slot_specs(self.cls.states)
        place, token = (self._port(name, TensorType(torch.int64, ("B", self.soft))) for name in (PLACE, TOKEN))
        k, v = (
            self._port(f"{SOFT}{part}", TensorType(spec.dtype, ("B", spec.dims[1], self.soft, spec.dims[3])))
            for part in ("k", "v")
            if (spec := find_state(self.cls.states, "kv", part)) is not None
        )
        score = e.where(e.call(aten.ge.Scalar, token, 0), e.cast(token, specs["score"].dtype), NOTHING)
        score = e.call(aten.expand.default, e.unsqueeze(score, 1), [-1, self.kv_heads, -1])
        return Leaving(k, v, place, token, score, self.soft)

    def record(self) -> dict[str, fx.Node]:
        """What this sleep writes, by part: what was recorded of the window's tokens or, where pairs are kept, of those
        that it drops; nothing if nothing is recorded. Values are left out if the KV window holds the same.
        """
        if self.dropped is not None:
            return self.dropped
        return {s.part: self.states[s.name] for s in with_role(self.cls.states, "record")}

    def _port(self, name: str, type_: TensorType) -> fx.Node:
        return self.e.graph.ports().get(name) or self.e.graph.add_port("input", name, type_)


def kv_length(cls: BlockClass, sinks: int) -> int:
    """The number of slots of the class's KV window apart from the sinks, 0 without one."""
    keys = find_state(cls.states, "kv", "k")
    return int(keys.dims[2]) - sinks if keys else 0


def gaps_name(length: int) -> str:
    """The name of which of a window's tokens were taken out of KV windows of this length."""
    return f"window_gaps.{length}"


def stays_name(length: int) -> str:
    """The name of which slots stay, in KV windows of this length."""
    return f"keep.{length}"
