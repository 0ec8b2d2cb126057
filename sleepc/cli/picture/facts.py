"""What a picture shows of a program, found in its graphs and states: blocks that are alike, windows, memories, sleep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import fx

from sleepc.inspection import BlockInfo, Inspection
from sleepc.ir.graph import Graph
from sleepc.ir.program import BlockClass, Loop, ProgramGraphs
from sleepc.ir.states import StateSpec, find_state, with_role
from sleepc.passes.analysis.find_sites import is_windowed
from sleepc.passes.rewrite.kept_pairs import writes_dropped
from sleepc.recipe import Recipe

Place = Literal["none", "beside", "after", "instead"]
LONGEST_PATTERN = 8  # blocks; families repeat 2 (Gemma 2) to 6 (Gemma 3)


@dataclass(frozen=True)
class MemoryFacts:
    """The fast weights of one block: where they stand, their sizes without the batch, and when they are written."""

    place: Place
    rule: str
    shapes: tuple[tuple[int, ...], ...]
    awake: bool  # written with every token
    replayed: bool  # written by a sleep from what the window held
    again: bool  # written by a sleep that runs the block again
    drops: bool  # what a sleep writes is what heads do not keep

    @property
    def asleep(self) -> bool:
        """Does a sleep write it?"""
        return self.replayed or self.again


@dataclass(frozen=True)
class BlockGroup:
    """Neighbouring blocks of one class. `kept`: tokens that attention keeps in addition to the sinks, 0 if it is gone.
    `state_bytes` of each block, on average where blocks keep different numbers of pairs.
    """

    blocks: tuple[int, ...]
    info: BlockInfo
    kept: int
    everything: bool  # it keeps every position that the model has
    memory: MemoryFacts
    state_bytes: int


@dataclass(frozen=True)
class Pattern:
    """Parts that come again and again, `times` times; `blocks` of a part are those of all repetitions."""

    parts: tuple[BlockGroup, ...]
    times: int

    @property
    def blocks(self) -> tuple[int, int]:
        """The first and the last block."""
        numbers = [i for part in self.parts for i in part.blocks]
        return min(numbers), max(numbers)


@dataclass(frozen=True)
class Facts:
    """All of it."""

    name: str
    seen: Inspection
    recipe: Recipe
    patterns: tuple[Pattern, ...]
    loop: Loop | None = None

    def parts(self) -> list[BlockGroup]:
        """Every part, from the first block to the last."""
        return [part for pattern in self.patterns for part in pattern.parts]


def facts_of(name: str, seen: Inspection, program: ProgramGraphs, recipe: Recipe) -> Facts:
    """What there is to draw of a converted program. `name` is what a person calls the model."""
    classes = [block.cls for block in program.layout]
    made = tuple(
        Pattern(tuple(_part(blocks, seen, program, recipe) for blocks in parts), times)
        for parts, times in find_patterns(classes)
    )
    return Facts(name, seen, recipe, made, program.loop)


def find_patterns(classes: Sequence[str]) -> list[tuple[list[tuple[int, ...]], int]]:
    """Classes of blocks, in order, as patterns: (the blocks of each of its parts, how often it comes).

    >>> find_patterns("aaa")
    [([(0, 1, 2)], 1)]
    >>> find_patterns("ababc")
    [([(0, 2), (1, 3)], 2), ([(4,)], 1)]
    >>> find_patterns("aabaab")
    [([(0, 1, 3, 4), (2, 5)], 2)]
    """
    found: list[tuple[list[tuple[int, ...]], int]] = []
    at = 0
    while at < len(classes):
        length, times = _longest_repeat(classes, at)
        parts: list[tuple[int, ...]] = []
        start = at
        while start < at + length:
            end = start + 1
            while end < at + length and classes[end] == classes[start]:
                end += 1
            parts.append(tuple(i + length * n for n in range(times) for i in range(start, end)))
            start = end
        # A run of one class is one part that comes once.
        found.append((parts, times) if len(parts) > 1 else (parts, 1))
        at += length * times
    return found


def _longest_repeat(classes: Sequence[str], at: int) -> tuple[int, int]:
    """(length, times) of the pattern that covers most blocks from `at` on; the shortest of equals, 1 without any."""
    best = (1, 1)
    for length in range(1, LONGEST_PATTERN + 1):
        pattern, times = classes[at : at + length], 1
        while classes[at + times * length : at + (times + 1) * length] == pattern:
            times += 1
        if len(pattern) == length and (times > 1 or length == 1) and length * times > best[0] * best[1]:
            best = (length, times)
    return best


def _part(blocks: tuple[int, ...], seen: Inspection, program: ProgramGraphs, recipe: Recipe) -> BlockGroup:
    cls = program.classes[program.layout[blocks[0]].cls]
    ring = find_state(cls.states, "kv", "k")
    slots = _size(ring)[1] if ring else 0
    return BlockGroup(
        blocks=blocks,
        info=seen.blocks[blocks[0]],
        kept=max(slots - recipe.sinks, 0),
        everything=slots > recipe.sinks + recipe.window and slots == program.max_positions,
        memory=_memory(cls, recipe.plan(len(program.layout))[blocks[0]].rule),
        state_bytes=sum(s.bytes_per_row() for s in program.all_states() if s.block in blocks) // len(blocks),
    )


def _size(spec: StateSpec) -> tuple[int, ...]:
    return tuple(int(d) for d in spec.dims[1:])


def _memory(cls: BlockClass, rule: str) -> MemoryFacts:
    specs = with_role(cls.states, "memory")
    names = {s.name for s in specs}
    return MemoryFacts(
        place=_place(cls.wake, names),
        rule=rule,
        shapes=tuple(_size(s) for s in specs),
        awake=bool(names & set(cls.wake.returns)),
        replayed=cls.sleep is not None and any(_writes(cls.sleep, name) for name in names),
        again=cls.again is not None and bool(names & set(cls.again.returns)),
        drops=writes_dropped(cls),
    )


def _place(graph: Graph, names: set[str]) -> Place:
    """Where a memory stands: after attention if what asks it is made from attention's output, beside it if not."""
    if not names:
        return "none"
    attention = [n for n in graph.calls() if is_windowed(n)]
    if not attention:
        return "instead"
    below = _descendants(attention)
    readers = {user for name in names for user in graph.ports("state")[name].users}
    return "after" if any(n in below for reader in readers for n in reader.all_input_nodes) else "beside"


def _descendants(nodes: list[fx.Node]) -> set[fx.Node]:
    found, stack = set(nodes), list(nodes)
    while stack:
        for user in stack.pop().users:
            if user not in found:
                found.add(user)
                stack.append(user)
    return found


def _writes(graph: Graph, name: str) -> bool:
    """Is the result of this name something else than the state as it was?"""
    results = graph.results()
    return name in results and results[name] is not graph.ports("state").get(name)
