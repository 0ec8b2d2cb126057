"""A program: embed, block classes with their layout, head, clock; parameters by reference; state by declaration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch.fx import Node

from sleepc.ir.graph import PARAMETERS, Graph
from sleepc.ir.levels import Level
from sleepc.ir.states import StateSpec, find_state, with_own
from sleepc.ir.weights import Param


@dataclass
class BlockClass:
    """A block's graphs with parameters abstracted: `wake` maps (h, extras, state) to (h, state'), `sleep` maps state
    to state', `again` is one more pass over a window while it is consolidated: (h, extras, state) to (h, memory').
    `turn` puts keys at positions, (k, positions) to k, in classes that keep pairs: sleep graphs are made with it, and
    at level STEP no class has one.
    """

    wake: Graph
    sleep: Graph | None = None
    again: Graph | None = None
    states: tuple[StateSpec, ...] = ()
    turn: Graph | None = None

    def graphs(self) -> list[Graph]:
        """Those that there are."""
        return [graph for graph in (self.wake, self.sleep, self.again, self.turn) if graph is not None]

    def parameters(self) -> dict[str, Node]:
        """The ports that a block of the class has parameters for, those of its sleep included."""
        graphs = [graph for graph in (self.wake, self.sleep, self.turn) if graph is not None]
        return {name: node for g in graphs for kind in PARAMETERS for name, node in g.ports(kind).items()}

    def clone(self) -> BlockClass:
        """A copy whose graphs may be changed."""
        graphs: dict[str, Any] = {
            f.name: g.clone() for f in fields(self) if isinstance(g := getattr(self, f.name), Graph)
        }
        return replace(self, **graphs)


@dataclass(frozen=True)
class Block:
    """One block of the layout: its class and, for each parameter port of the class, the key of its parameter. `ring` is
    the earlier block whose KV window it reads, if it has none of its own.
    """

    cls: str
    params: dict[str, str]
    ring: int | None = None


@dataclass
class Loop:
    """Recurrent consolidation: a sleep runs blocks `start` to `end` (not included) `passes` - 1 times over its window's
    hidden states, then the blocks after them once. `given` makes what they read in addition to h, from the counters
    before the sleep and, if need be, the window's tokens.

    With `settle` > 0 a row takes no further pass once one has changed its memories in the loop by no more than this
    share, |S_n - S_(n-1)| / |S_n| over all their numbers; a state of role `count` has how many it took.
    """

    start: int
    end: int
    passes: int
    given: Graph
    settle: float = 0.0

    def clone(self) -> Loop:
        """A copy whose graph may be changed."""
        return replace(self, given=self.given.clone())


@dataclass
class Learn:
    """Consolidation `gradient`: before all else that a sleep does, `step` makes of the state, by full names ("3.k"),
    new values of what the blocks from `start` on learn, `steps` times, each from those of the step before. Its
    parameters are named by their keys in `params`; it holds the rate `lr`, the norm `clip`, and which tokens count in
    the loss (`loss`, `span`: see recipe.Gradient).

    It is derived: blocks from `start` on and head, over the window, and the way back. A pass that changes those makes
    it anew (passes/consolidation/learning.py).
    """

    start: int
    steps: int
    lr: float
    clip: float
    step: Graph
    loss: str = "next"
    span: int = 0

    def clone(self) -> Learn:
        """A copy whose graph may be changed."""
        return replace(self, step=self.step.clone())


SOFT = "soft."  # begins the names of what `Encode` makes


@dataclass
class Encode:
    """Consolidation `tokens`: before all else that a sleep does, `step` makes soft tokens of the state, by full names,
    and of parameters, by their keys in `params`: "3.soft.k" and "3.soft.v" for block 3, "soft.position" for all blocks.
    The blocks' sleep graphs read them without the number.
    """

    step: Graph

    def clone(self) -> Encode:
        """A copy whose graph may be changed."""
        return replace(self, step=self.step.clone())


@dataclass
class ProgramGraphs:
    """A model as a compiler sees it (docs/ir.md). At level ATEN the whole model is in `embed`, and there are no blocks.

    embed: (tokens [B,T], positions [B,T]) -> h [B,T,d] and loop-invariant extras; from CONVERTED on also the clock's
    values.
    head: h [B,T,d] -> logits [B,T,V].  clock: counters at a sleep -> new counters and what the blocks' sleep graphs
    read.  loop: where sleeps run blocks again.  learn: where they take steps of gradient descent.
    encode: where they make soft tokens.
    A port of kind param or const of `embed`, `head` is named by its key in `params`; in a block class by
    `Block.params`.
    """

    embed: Graph
    head: Graph
    level: Level = "ATEN"
    classes: dict[str, BlockClass] = field(default_factory=dict)
    layout: list[Block] = field(default_factory=list)
    clock: Graph | None = None
    loop: Loop | None = None
    learn: Learn | None = None
    encode: Encode | None = None
    states: tuple[StateSpec, ...] = ()
    params: dict[str, Param] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    max_positions: int | None = None
    vocab: int = 0
    hidden: int = 0
    window: int = 0  # tokens from sleep to sleep, at level STEP
    # If the original chooses by a call's length, this computes what it does in calls of so many tokens, or of more:
    upto: int | None = None
    beyond: int | None = None
    picked: int | None = None  # if the model picks the keys that a query sees: so many, or all where there are fewer
    history: list[str] = field(default_factory=list)

    def graphs(self) -> Iterator[Graph]:
        """Every graph once, in the order of the data's way."""
        yield self.embed
        for cls in self.classes.values():
            yield from cls.graphs()
        yield self.head
        if self.clock is not None:
            yield self.clock
        if self.loop is not None:
            yield self.loop.given
        if self.learn is not None:
            yield self.learn.step
        if self.encode is not None:
            yield self.encode.step

    def all_states(self) -> list[StateSpec]:
        """Every state tensor of a session, by its full name ("3.k" is state k of block 3)."""
        specs = list(self.states)
        for i, block in enumerate(self.layout):
            sizes = self.sizes(i)
            for spec in with_own(self.classes[block.cls].states):
                specs.append(replace(spec, block=i, dims=tuple(sizes.get(str(dim), dim) for dim in spec.dims)))
        return specs

    def state_names(self, i: int) -> dict[str, str]:
        """The full names of the states that block i's graphs read and write, by the names of their ports."""
        block = self.layout[i]
        specs = self.classes[block.cls].states
        return {s.name: replace(s, block=block.ring if s.update == "read" else i).name for s in specs}

    def soft_of(self, i: int, made: Mapping[str, Any]) -> dict[str, Any]:
        """Of what `encode` has `made`, by its names there, what block i's sleep graph reads, by the names of ports."""
        own = f"{i}.{SOFT}"
        return {SOFT + name.removeprefix(own): value for name, value in made.items() if name.startswith(own)}

    def sizes(self, i: int) -> dict[str, int]:
        """Sizes that block i has and others of its class may not have, by their names in types: from its constants."""
        block = self.layout[i]
        found: dict[str, int] = {}
        for name, port in self.classes[block.cls].wake.ports("const").items():
            shape = self.params[block.params[name]].shape
            found |= {dim: n for dim, n in zip(port.meta["type"].dims, shape, strict=True) if isinstance(dim, str)}
        return found

    def loop_hidden(self) -> StateSpec | None:
        """The state with the window's hidden states, from which the passes of the loop start."""
        assert self.loop is not None, "no block runs again"
        last = self.loop.end - 1
        found = find_state(self.classes[self.layout[last].cls].states, "loop", "hidden")
        return found and replace(found, block=last)

    def state_bytes(self) -> int:
        """Bytes of state of one sequence, at any length."""
        return sum(spec.bytes_per_row() for spec in self.all_states())

    def clone(self) -> ProgramGraphs:
        """A copy whose graphs may be changed; parameters are shared."""
        classes = {name: cls.clone() for name, cls in self.classes.items()}
        return replace(
            self,
            embed=self.embed.clone(),
            head=self.head.clone(),
            clock=self.clock.clone() if self.clock else None,
            loop=self.loop.clone() if self.loop else None,
            learn=self.learn.clone() if self.learn else None,
            encode=self.encode.clone() if self.encode else None,
            classes=classes,
            layout=list(self.layout),
            params=dict(self.params),
            history=list(self.history),
        )
