"""Layers that use keys and values of an earlier layer again read that layer's KV window, and have none of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import fx

from sleepc.ir.graph import Graph
from sleepc.ir.infer import infer_types
from sleepc.ir.program import BlockClass, ProgramGraphs
from sleepc.ir.states import StateSpec, with_role
from sleepc.passes.analysis.origins import Origin, origin_of
from sleepc.passes.base import Effect, Pass
from sleepc.passes.consolidation.learning import learn_anew
from sleepc.passes.consolidation.window_again import drop_ports
from sleepc.passes.facts import BLOCKS, BOUNDED, SLEEPS, Fact
from sleepc.passes.lib.classes import chosen_classes, embed_port
from sleepc.passes.lib.emit import Emit, aten
from sleepc.passes.rewrite.key_positions import copy_nodes

Ring = tuple[tuple[StateSpec, str, bool, Origin], ...]
"""What a KV window is, state by state: its size, the slots that are written, whether sleeps evict it, and where what is
written comes from. Those that are equal hold the same at any time.
"""


@dataclass(frozen=True)
class ShareRings(Pass):
    """A block whose KV window would hold what an earlier block's does reads that one (`Block.ring`), as it was before
    the call: it writes no window, and its sleep evicts none. The earlier block writes beside what it has read, since
    others read it still, and windows are written in place. What a memory records stays its block's own.

    A layer that is narrowed, left or replaced by itself, or whose keys are kept in another form (without positions, for
    scores of kept pairs), has another window, and keeps it (docs/decisions/0028).
    """

    name: ClassVar[str] = "share-rings"
    effect: ClassVar[Effect] = "EXACT"
    requires: ClassVar[tuple[Fact, ...]] = (BLOCKS, BOUNDED, SLEEPS)

    def run(self, program: ProgramGraphs) -> int:
        """The number of blocks that read an earlier block's window."""
        first: dict[Ring, int] = {}
        rings = {i: ring for i in range(len(program.layout)) if (ring := _ring_of(program, i))}
        found = {i: owner for i, ring in rings.items() if (owner := first.setdefault(ring, i)) != i}
        for name in chosen_classes(program, tuple(found)):
            _only_read(program.classes[name])
        for name in chosen_classes(program, tuple(set(found.values()))):
            _write_beside(program.classes[name])
        for i, owner in found.items():
            program.layout[i] = replace(program.layout[i], ring=owner)
        if found:
            learn_anew(program)
            _read_owners(program, found)
        return len(found)


def _ring_of(program: ProgramGraphs, i: int) -> Ring:
    """The KV window of a block, () if it has none."""
    cls = program.classes[program.layout[i].cls]
    results, evicted = cls.wake.results(), cls.sleep.returns if cls.sleep else ()
    found = []
    for spec in with_role(cls.states, "kv"):
        _, new, slots = _written(results[spec.name])
        found.append((spec, slots.meta["port"].name, spec.name in evicted, origin_of(program, i, new)))
    return tuple(found)


def _written(write: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node]:
    """Window, new values and slots of a `write_slots`."""
    args: Any = write.args
    window, new, slots = args
    return window, new, slots


def _only_read(cls: BlockClass) -> None:
    names = {spec.name for spec in with_role(cls.states, "kv")}
    cls.states = tuple(replace(spec, update="read") if spec.name in names else spec for spec in cls.states)
    for graph in _steps(cls):
        graph.set_returns({name: node for name, node in graph.results().items() if name not in names})
        graph.drop_dead()
        drop_ports(graph)


def _read_owners(program: ProgramGraphs, found: Mapping[int, int]) -> None:
    """The graph that makes soft tokens reads the windows of blocks by the names of whose they are."""
    if program.encode is None:
        return
    step = program.encode.step
    for i, owner in found.items():
        for spec in with_role(program.classes[program.layout[i].cls].states, "kv"):
            old = step.ports().get(replace(spec, block=i).name)
            name = replace(spec, block=owner).name
            if old is not None:
                new = step.ports().get(name) or step.add_port("state", name, spec.type())
                old.replace_all_uses_with(new)
                step.fx.erase_node(old)


def _write_beside(cls: BlockClass) -> None:
    results = cls.wake.results()
    for spec in with_role(cls.states, "kv"):
        write = results[spec.name]
        window, new, slots = _written(write)
        e = Emit(cls.wake, str(write.meta.get("source", "")), write)
        write.args = (e.call(aten.clone.default, window), new, slots)
    infer_types(cls.wake)


def _steps(cls: BlockClass) -> Iterator[Graph]:
    yield cls.wake
    if cls.sleep is not None:
        yield cls.sleep


def with_own_ring(program: ProgramGraphs, i: int) -> BlockClass:
    """The class of a block as it would be if the block had a KV window of its own: for a block that is run alone."""
    block = program.layout[i]
    cls = program.classes[block.cls]
    if block.ring is None:
        return cls
    cls, owner = cls.clone(), program.classes[program.layout[block.ring].cls]
    program = replace(program, classes={**program.classes, block.cls: cls})
    read = [spec for spec in cls.states if spec.update == "read"]
    for spec, (_, slots, _, origin) in zip(read, _ring_of(program, block.ring), strict=True):
        new = next(n for n in cls.wake.fx.nodes if _is_like(n, spec) and origin_of(program, i, n) == origin)
        e = Emit(cls.wake, "ring")
        write = e.ours("write_slots", cls.wake.ports()[spec.name], new, embed_port(program, cls.wake, slots))
        cls.wake.set_returns({**cls.wake.results(), spec.name: write})
        if cls.sleep is not None and owner.sleep is not None and spec.name in owner.sleep.returns:
            _evict(cls.sleep, owner.sleep, spec)
    for graph in _steps(cls):
        infer_types(graph)
    cls.states = tuple(replace(spec, update="ring") if spec in read else spec for spec in cls.states)
    return cls


def _is_like(node: fx.Node, spec: StateSpec) -> bool:
    """Can the value be written into this state?"""
    dims: tuple[int | str, ...] = getattr(node.meta.get("type"), "dims", ())
    return len(dims) == len(spec.dims) and (dims[1], *dims[3:]) == (spec.dims[1], *spec.dims[3:])


def _evict(sleep: Graph, owner: Graph, spec: StateSpec) -> None:
    """As the owner's sleep evicts this state."""
    result, ports = owner.results()[spec.name], sleep.ports()
    needed, new = {result}, {}
    for node in reversed(list(owner.fx.nodes)):
        if node in needed and node.op == "placeholder":
            port = node.meta["port"]
            new[node] = ports.get(port.name) or sleep.add_port(port.kind, port.name, node.meta["type"])
        elif node in needed:
            needed.update(node.all_input_nodes)
    copy_nodes(Emit(sleep, "ring"), [n for n in owner.calls() if n in needed], new, lambda dim: new[result])
    sleep.set_returns({**sleep.results(), spec.name: new[result]})
