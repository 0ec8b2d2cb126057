"""Recurrent consolidation: what a sleep needs to run blocks again over the window that it consolidates."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import fx

from sleepc.ir.graph import Graph
from sleepc.ir.infer import infer_types
from sleepc.ir.program import BlockClass, Loop, ProgramGraphs
from sleepc.ir.roles import TAKEN
from sleepc.ir.states import StateSpec, with_role
from sleepc.ir.types import TensorType
from sleepc.passes.base import Effect, Pass
from sleepc.passes.facts import AWAKE, BLOCKS, BOUNDED, CLOCKED, Fact
from sleepc.passes.lib.classes import chosen_classes, embed_port, type_of
from sleepc.passes.lib.emit import Emit, aten
from sleepc.passes.rewrite.key_positions import is_held, unheld
from sleepc.passes.rewrite.window_masks import is_mask


@dataclass(frozen=True)
class AddLoop(Pass):
    """Consolidation `recurrent` over blocks [start, end), passes > 1 (semantics.md, section 4; arXiv 2605.26099,
    Algorithm 1); nothing if passes = 1.

    The last block of the loop records the window's hidden states. Every block from `start` on gets a graph `again`: its
    wake pass over the window, with attention confined to the window and the sinks from before it, the convolution's
    tail zero, and nothing returned but h and the memory. Blocks from `end` on run from the window's start: those that
    write online keep their memory of that moment. The window's token ids are recorded if blocks read what embed makes
    of them. With `settle` passes end early (see Loop), and the program counts them.
    """

    start: int
    end: int
    passes: int
    window: int
    sinks: int
    settle: float = 0.0
    name: ClassVar[str] = "add-loop"
    effect: ClassVar[Effect] = "APPROXIMATE"
    requires: ClassVar[tuple[Fact, ...]] = (BLOCKS, BOUNDED, CLOCKED, AWAKE)

    def run(self, program: ProgramGraphs) -> int:
        """The number of graphs added."""
        if self.passes == 1:
            return 0
        count = len(program.layout)
        for name in chosen_classes(program, (self.end - 1,)):
            self._record_hidden(program, program.classes[name])
        after = chosen_classes(program, tuple(range(self.end, count)))
        again = chosen_classes(program, tuple(range(self.start, count)))
        for name in again:
            self._run_again(program, program.classes[name], name, from_start=name in after)
        read = {port for name in again for port in _again(program.classes[name]).ports("input")} - {"h"}
        program.loop = Loop(self.start, self.end, self.passes, self._given(program, read), self.settle)
        if self.settle:
            program.states = (*program.states, StateSpec("count", TAKEN, ("B",), torch.int64, "overwrite"))
        return 1 + len(again)

    def _record_hidden(self, program: ProgramGraphs, cls: BlockClass) -> None:
        spec = StateSpec("loop", "hidden", ("B", 1, self.window, program.hidden), program.dtype, "ring")
        cls.states = (*cls.states, spec)
        port = cls.wake.add_port("state", spec.name, spec.type())
        results, e = cls.wake.results(), Emit(cls.wake, "loop")
        slots = embed_port(program, cls.wake, "record_slots")
        results[spec.name] = e.ours("write_slots", port, e.unsqueeze(results["h"], 1), slots)
        cls.wake.set_returns(results)
        infer_types(cls.wake)

    def _run_again(self, program: ProgramGraphs, cls: BlockClass, name: str, *, from_start: bool) -> None:
        graph = cls.again or _without_new(cls)
        graph.name = f"{name}.again"
        states = graph.ports("state")
        e = Emit(graph, "loop", next(iter(graph.calls())))
        for spec in with_role(cls.states, "tail"):
            if spec.name in states:
                _replace(states[spec.name], e.call(aten.zeros_like.default, states[spec.name]))
        for spec in with_role(cls.states, "kv"):
            if spec.name in states:
                _replace(states[spec.name], e.call(aten.slice.Tensor, states[spec.name], 2, 0, self.sinks))
        for port, node in graph.ports("input").items():
            type_: TensorType = node.meta["type"]
            if is_mask(port):
                node.meta["type"] = replace(type_, dims=(*type_.dims[:3], f"T+{self.sinks}" if self.sinks else "T"))
            elif is_held(port):
                node.meta["type"] = replace(type_, dims=_put(type_.dims, _slots_dim(program, port), self.sinks))
        if from_start:
            self._from_start(cls, graph)
        graph.drop_dead()
        _drop_ports(graph)
        infer_types(graph)
        cls.again = graph

    def _from_start(self, cls: BlockClass, graph: Graph) -> None:
        """Memories that wake writes are kept as they were at the window's start, and `graph` continues from there."""
        states, results = graph.ports("state"), graph.results()
        for memory in with_role(cls.states, "memory", "own"):
            if memory.name in cls.wake.returns:
                spec = replace(memory, role="start", part=memory.name, update="overwrite")
                cls.states = (*cls.states, spec)
                _replace(states[memory.name], graph.add_port("state", spec.name, spec.type()))
                results[spec.name] = results[memory.name]
        graph.set_returns(results)

    def _given(self, program: ProgramGraphs, read: set[str]) -> Graph:
        """embed at the window's start: counters [B] (and the window's tokens) -> what blocks read in addition to h."""
        graph = program.embed.clone()
        graph.name = "again"
        graph.set_returns({name: node for name, node in graph.results().items() if name in read})
        graph.drop_dead()
        ports = graph.ports()
        old = {name: list(ports[name].users) for name in ("position", "since", "lengths", "tokens")}
        e = Emit(graph, "loop", next(iter(graph.calls())))
        new = {
            "position": e.sub(ports["position"], ports["since"]),
            "since": e.call(aten.zeros_like.default, ports["since"]),
            "lengths": e.call(aten.clone.default, ports["since"]),
        }
        for name, node in new.items():
            for user in old[name]:
                user.replace_input_with(ports[name], node)
        self._replace_tokens(program, graph, e)
        results = graph.results()
        late = Emit(graph, "loop")
        for name in sorted(read):
            if is_mask(name):
                results[name] = self._confined(late, results[name])
            elif is_held(name):
                results[name] = late.call(aten.slice.Tensor, results[name], _slots_dim(program, name), 0, self.sinks)
        graph.set_returns(results)
        graph.drop_dead()
        _drop_ports(graph)
        infer_types(graph)
        return graph

    def _replace_tokens(self, program: ProgramGraphs, graph: Graph, e: Emit) -> None:
        """Sizes are known; if the ids themselves are read, they become state."""
        tokens, rows = graph.ports()["tokens"], graph.ports()["position"]
        for user in list(tokens.users):
            if user.target is aten.sym_size.int:
                user.replace_all_uses_with(e.size(rows, 0) if user.args[1] == 0 else self.window)  # type: ignore[arg-type]
                graph.fx.erase_node(user)
        if not tokens.users:
            return
        spec = StateSpec("loop", "window_tokens", ("B", 1, self.window), torch.int64, "ring")
        _replace(tokens, e.call(aten.select.int, graph.add_port("state", spec.name, spec.type()), 1, 0))
        _record_tokens(program, spec)

    def _confined(self, e: Emit, mask: fx.Node) -> fx.Node:
        """The mask's columns for sinks and for the window's own tokens, which come last."""
        own = e.call(aten.slice.Tensor, mask, -1, -self.window, 1 << 62)
        return e.call(aten.cat.default, [e.call(aten.slice.Tensor, mask, -1, 0, self.sinks), own], -1)


def _slots_dim(program: ProgramGraphs, held: str) -> int:
    """The dimension of slots in what is made of the positions of kept keys: that of tokens in what it is like."""
    return type_of(program.embed, unheld(held)).dims.index("T")


def _put(dims: tuple[int | str, ...], at: int, size: int) -> tuple[int | str, ...]:
    return (*dims[:at], size, *dims[at + 1 :])


def _without_new(cls: BlockClass) -> Graph:
    """Wake's h and the memories of the model's own: all that passes make of a block without a new memory."""
    copy, own = cls.wake.clone(), [spec.name for spec in with_role(cls.states, "own")]
    copy.set_returns({name: copy.results()[name] for name in ("h", *own)})
    copy.drop_dead()
    return copy


def _again(cls: BlockClass) -> Graph:
    assert cls.again is not None
    return cls.again


def _replace(old: fx.Node, new: fx.Node) -> None:
    """Let everything that read `old`, but for `new` itself, read `new`."""
    for user in [user for user in old.users if user is not new]:
        user.replace_input_with(old, new)


def _drop_ports(graph: Graph) -> None:
    """Ports of state and input that nothing reads; parameters stay, as the layout names them."""
    for node in [*graph.ports("state").values(), *graph.ports("input").values()]:
        if not node.users:
            graph.fx.erase_node(node)


def _record_tokens(program: ProgramGraphs, spec: StateSpec) -> None:
    embed = program.embed
    port = embed.add_port("state", spec.name, spec.type())
    results, e = embed.results(), Emit(embed, "loop")
    new = e.unsqueeze(embed.ports()["tokens"], 1)
    results[spec.name] = e.ours("write_slots", port, new, results["record_slots"])
    embed.set_returns(results)
    infer_types(embed)
    program.states = (*program.states, spec)
