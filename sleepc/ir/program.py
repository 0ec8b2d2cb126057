"""A program: embed, block classes with their layout, head, clock; parameters by reference; state by declaration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from sleepc.ir.graph import Graph
from sleepc.ir.types import TensorType
from sleepc.ir.weights import Param

Level = Literal["ATEN", "CANONICAL", "CONVERTED", "STEP"]
Update = Literal["overwrite", "ring", "accumulate"]


@dataclass(frozen=True)
class StateSpec:
    """One tensor of the state; `dims` starts with "B". It is zero at first; `update` is how it may be written in
    place.
    """

    name: str
    dims: tuple[int | str, ...]
    dtype: torch.dtype
    update: Update

    def type(self) -> TensorType:
        """The type of the state's port."""
        return TensorType(self.dtype, self.dims)

    def bytes_per_row(self) -> int:
        """Bytes of one sequence's part of this tensor."""
        size = self.dtype.itemsize
        for dim in self.dims[1:]:
            assert isinstance(dim, int), self
            size *= dim
        return size


@dataclass
class BlockClass:
    """A block's graphs with parameters abstracted: `wake` maps (h, extras, state) to (h, state'), `sleep` maps state
    to state'.
    """

    wake: Graph
    sleep: Graph | None = None
    states: tuple[StateSpec, ...] = ()


@dataclass(frozen=True)
class Block:
    """One block of the layout: its class and, for each parameter port of the class, the key of its parameter."""

    cls: str
    params: dict[str, str]


@dataclass
class ProgramGraphs:
    """A model as a compiler sees it (docs/ir.md). At level ATEN the whole model is in `embed`, and there are no blocks.

    embed: (tokens [B,T], positions [B,T]) -> h [B,T,d] and loop-invariant extras; from CONVERTED on also the clock's
    values.
    head: h [B,T,d] -> logits [B,T,V].  clock: counters at a sleep -> new counters and what the blocks' sleep graphs
    read.
    A port of kind param or const of `embed`, `head` is named by its key in `params`; in a block class by
    `Block.params`.
    """

    embed: Graph
    head: Graph
    level: Level = "ATEN"
    classes: dict[str, BlockClass] = field(default_factory=dict)
    layout: list[Block] = field(default_factory=list)
    clock: Graph | None = None
    states: tuple[StateSpec, ...] = ()
    params: dict[str, Param] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    max_positions: int | None = None
    vocab: int = 0
    hidden: int = 0
    history: list[str] = field(default_factory=list)

    def graphs(self) -> Iterator[Graph]:
        """Every graph once, in the order of the data's way."""
        yield self.embed
        for cls in self.classes.values():
            yield cls.wake
            if cls.sleep is not None:
                yield cls.sleep
        yield self.head
        if self.clock is not None:
            yield self.clock

    def all_states(self) -> list[StateSpec]:
        """Every state tensor of a session, by its full name ("3.k" is state k of block 3)."""
        specs = list(self.states)
        for i, block in enumerate(self.layout):
            specs += [replace(s, name=f"{i}.{s.name}") for s in self.classes[block.cls].states]
        return specs

    def state_bytes(self) -> int:
        """Bytes of state of one sequence, at any length."""
        return sum(spec.bytes_per_row() for spec in self.all_states())

    def clone(self) -> ProgramGraphs:
        """A copy whose graphs may be changed; parameters are shared."""
        classes = {
            name: BlockClass(c.wake.clone(), c.sleep.clone() if c.sleep else None, c.states)
            for name, c in self.classes.items()
        }
        return replace(
            self,
            embed=self.embed.clone(),
            head=self.head.clone(),
            clock=self.clock.clone() if self.clock else None,
            classes=classes,
            layout=list(self.layout),
            params=dict(self.params),
            history=list(self.history),
        )
