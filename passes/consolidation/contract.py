"""What a consolidation is: all that the compiler, the oracle and the words for people ask of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor, fx

from sleepc.ir.graph import Graph
from sleepc.passes.analysis.find_down import find_down
from sleepc.passes.analysis.linear_maps import LinearMap
from sleepc.passes.base import Pass
from sleepc.passes.consolidation.block_sleep import BlockSleep, Leaving
from sleepc.passes.consolidation.record import write_record
from sleepc.passes.plan import Asleep
from sleepc.recipe import Keep, LayerPlan, Recipe, Soft

Plans = tuple[LayerPlan, ...]
Memory = list[Tensor]


@dataclass(frozen=True)
class Untrained:
    """What to say of a program that only training makes useful: when it is converted, and why it is bad beyond the
    window.
    """

    warning: str
    cause: str
    fix: str


@dataclass
class Pairs:
    """Kept pairs in the oracle: for every row and KV head, by order of position, the tokens that they are of (by their
    place in the stream), their scores, and the positions at which they stand, as the model counts, and stood when they
    were first kept. `budget`: how many each head keeps.
    """

    budget: tuple[int, ...]
    tokens: list[list[list[int]]]
    scores: list[list[list[float]]]
    places: list[list[list[int]]]
    first_places: list[list[list[int]]]


@dataclass
class SoftPairs:
    """Soft tokens of one block in the oracle, the same in every row and head: k [B,Hkv,n,d_k] before positions, v, the
    numbers of the tokens that they begin as, and the positions at which they stand, as the model counts.
    """

    k: Tensor
    v: Tensor
    numbers: list[int]
    places: list[int]


@dataclass
class Layer:
    """What one block has seen and holds, in the oracle: k and v [B,Hkv,t,..] as attention sees them (k before
    positions, if it sees them at other ones later), what its convolution has seen [B,t,channels], its memory, and
    what is to be written into it: what the window's tokens have made or, in the sleep of a layer that keeps pairs, what
    it drops. `kept`: the pairs that it keeps, or None; `soft`: its soft tokens. `made`: what all of the stream's
    tokens have. `own`: what its own convolutions have seen and its own recurrences hold, by the names of their states.
    `fast`: what sleeps have added to linear maps of its MLP [B,in,out], by the maps' names, if they write any; `inputs`
    [B,n,d_f] and `sources` [B,n,d] are what the window's tokens have recorded for the down-projection: what it reads,
    and the block's h over its root mean square.
    """

    k: Tensor | None = None
    v: Tensor | None = None
    mixed: Tensor | None = None
    memory: Memory | None = None
    written: dict[str, Tensor] | None = None
    kept: Pairs | None = None
    soft: SoftPairs | None = None
    made: dict[str, Tensor] | None = None
    own: dict[str, Tensor] = field(default_factory=dict)
    fast: dict[str, Tensor] = field(default_factory=dict)
    inputs: Tensor = field(default_factory=lambda: torch.zeros(0))
    sources: Tensor = field(default_factory=lambda: torch.zeros(0))

    @property
    def memories(self) -> list[Tensor]:
        """What passes change: its memory, and what its own recurrences hold."""
        return [*(self.memory or []), *(x for name, x in self.own.items() if name.startswith("own"))]

    @memories.setter
    def memories(self, new: list[Tensor]) -> None:
        count = len(self.memory or [])
        self.memory = None if self.memory is None else new[:count]
        names = [name for name in self.own if name.startswith("own")]
        self.own |= dict(zip(names, new[count:], strict=True))


class StreamSleep(Protocol):
    """A window that the oracle has read, and that a sleep ends: what `remember` changes, and what it may ask for."""

    @property
    def recipe(self) -> Recipe:
        """Its options."""

    @property
    def plans(self) -> Plans:
        """What became of the layers."""

    @property
    def rows(self) -> int:
        """B."""

    @property
    def layers(self) -> list[Layer]:
        """What the blocks hold; `remember` gives them their memories."""

    def parameters_of(self, i: int) -> Mapping[str, Tensor]:
        """What the conversion has added to block i, by the short names of sleepc/memory/parameters.py."""

    def restart(self, i: int) -> None:
        """What block i remembers is again as it was when the window began."""

    @property
    def tokens(self) -> Tensor:
        """What the window read [B,n]."""

    @property
    def earlier(self) -> int:
        """How many sleeps the stream had before this one."""

    @property
    def block_inputs(self) -> list[Tensor]:
        """What went into every block in wake [B,n,d]."""

    @property
    def block_outputs(self) -> list[Tensor]:
        """What wake left after every block [B,n,d]."""

    taken: Tensor | None
    """How many passes each row took [B], if they are counted."""

    def replay(self, i: int, first: int, passes: int) -> None:
        """Passes `first` .. `passes` - 1 of block i's rule over what its window would write."""

    def run(self, i: int, h: Tensor, *, live: bool | None = None) -> Tensor:
        """Block i over the window once more: h [B,n,d] -> [B,n,d]. `live`: do memories count? By default as in the
        window.
        """

    def logits(self, h: Tensor) -> Tensor:
        """The head on h [B,n,d] of the window -> [B,n,V]."""


class Consolidation:
    """What a sleep does with a window (docs/consolidations.md). It is stateless: the recipe has all options."""

    name: ClassVar[str]

    # -- what a recipe may ask

    def check(self, recipe: Recipe) -> None:
        """Raises UsageError for a recipe with this consolidation that does not fit. Needs no model."""

    def check_unused(self, recipe: Recipe) -> None:
        """Raises UsageError for options of this consolidation in a recipe with another one."""

    def check_memory(self, recipe: Recipe, plan: LayerPlan, layer: str) -> None:
        """Raises UsageError for a memory that it does not fit; what the place in an error begins with is `layer`."""

    def check_layers(self, recipe: Recipe, plans: Plans) -> None:
        """Raises UsageError for layers that it does not fit."""
        recipe.loop_range(len(plans))  # an option that cannot be read is refused, even if nothing needs it

    def check_other_passes(self, recipe: Recipe) -> None:
        """Raises UsageError if a program that was made for one number of passes cannot sleep with another."""

    # -- what becomes of a program

    def asleep(self, recipe: Recipe, plans: Plans, i: int) -> Asleep:
        """What sleeps do to the memory of layer i."""
        raise NotImplementedError

    def written(self, recipe: Recipe, blocks: int) -> tuple[int, ...]:
        """The blocks whose MLP sleeps write: they have states of role `fast`."""
        return ()

    def maps(self, recipe: Recipe, graph: Graph) -> dict[str, LinearMap]:
        """The linear maps of such a block, as it is before any rewriting, by the parts of these states."""
        down = find_down(graph)
        return {} if down is None else {"down": down}

    def changes(self, recipe: Recipe) -> bool:
        """Do sleeps change a model beyond what its tokens wrote while awake?"""
        return recipe.passes > 1

    def keep(self, recipe: Recipe) -> Keep | None:
        """What slots hold, and how many there are; None if there are none."""
        return recipe.keep

    def soft(self, recipe: Recipe) -> Soft | None:
        """The options of the soft tokens that slots hold; None if they hold pairs of the window."""
        return None

    def rewrites(self, recipe: Recipe, plans: Plans) -> tuple[Pass, ...]:
        """Passes after attention is bounded, or memories have taken its place, and before memories stand beside it."""
        return ()

    def behind(self, h: Tensor, layer: Layer, parameters: Mapping[str, Tensor]) -> Tensor:
        """In the oracle, what `rewrites` have added behind a block: h [B,n,d] -> [B,n,d], by the parameters that the
        conversion added to it.
        """
        return h

    def stateful(self, recipe: Recipe, blocks: int) -> tuple[Pass, ...]:
        """Passes before the sleep graphs are made."""
        return ()

    def leaving(self, block: BlockSleep) -> Leaving | None:
        """What slots may get in a sleep, if it is not the pairs of the window."""
        return None

    def sleep(self, block: BlockSleep) -> dict[str, fx.Node]:
        """New values of a block's memory, by the names of its states, if its window was recorded. All others follow
        from their roles.
        """
        return write_record(block)

    # -- what it means

    def remember(self, sleep: StreamSleep) -> None:
        """The same on numbers, in the oracle, without anything that `sleep` calls."""
        raise NotImplementedError

    # -- what is said of it

    def in_words(self, recipe: Recipe, blocks: int) -> str:
        """What a sleep does, for `inspect`: "2 passes of replay"."""
        passes = f"{recipe.passes} pass{'es' if recipe.passes > 1 else ''}"
        return f"{passes} of {self.name}"

    def again_in_words(self, recipe: Recipe, blocks: int, named: Callable[[Sequence[int]], str]) -> str:
        """A sentence for the picture: which blocks are computed again and how, "" if none is. `named` names blocks."""
        return ""

    def untrained(self, recipe: Recipe) -> Untrained | None:
        """What to say if only training makes it useful."""
        return None
