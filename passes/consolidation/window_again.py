"""What runs blocks once more over the window that a sleep ends: its tokens, hidden states, and what blocks read."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import fx

from sleepc.ir.graph import Graph
from sleepc.ir.infer import infer_types
from sleepc.ir.program import BlockClass, ProgramGraphs
from sleepc.ir.states import StateSpec, find_state, with_role
from sleepc.ir.types import TensorType
from sleepc.passes.lib.classes import chosen_classes, embed_port, type_of
from sleepc.passes.lib.emit import Emit, aten
from sleepc.passes.rewrite.key_positions import is_held, unheld
from sleepc.passes.rewrite.window_masks import is_mask

TOKENS = "window_tokens"


def record_hidden(program: ProgramGraphs, block: int, window: int) -> None:
    """The block keeps the window's hidden states after it: state `hidden` [B,1,L,d]."""
    for name in chosen_classes(program, (block,)):
        cls = program.classes[name]
        spec = StateSpec("loop", "hidden", ("B", 1, window, program.hidden), program.dtype, "ring")
        cls.states = (*cls.states, spec)
        port = cls.wake.add_port("state", spec.name, spec.type())
        results, e = cls.wake.results(), Emit(cls.wake, "loop")
        slots = embed_port(program, cls.wake, "record_slots")
        results[spec.name] = e.ours("write_slots", port, e.unsqueeze(results["h"], 1), slots)
        cls.wake.set_returns(results)
        infer_types(cls.wake)


def record_tokens(program: ProgramGraphs, window: int) -> StateSpec:
    """The window's token ids as state [B,1,L], if they are not yet."""
    found = find_state(program.states, "loop", TOKENS)
    if found is not None:
        return found
    spec = StateSpec("loop", TOKENS, ("B", 1, window), torch.int64, "ring")
    embed = program.embed
    port = embed.add_port("state", spec.name, spec.type())
    results, e = embed.results(), Emit(embed, "loop")
    new = e.unsqueeze(embed.ports()["tokens"], 1)
    results[spec.name] = e.ours("write_slots", port, new, results["record_slots"])
    embed.set_returns(results)
    infer_types(embed)
    program.states = (*program.states, spec)
    return spec


def confine(program: ProgramGraphs, cls: BlockClass, graph: Graph, sinks: int) -> None:
    """A wake graph of the class becomes one that runs over the window: attention sees the window and the sinks from
    before it, and convolutions see zeros.
    """
    states = graph.ports("state")
    e = Emit(graph, "loop", next(iter(graph.calls())))
    for spec in with_role(cls.states, "tail"):
        if spec.name in states:
            replace_uses(states[spec.name], e.call(aten.zeros_like.default, states[spec.name]))
    for spec in with_role(cls.states, "kv"):
        if spec.name in states:
            replace_uses(states[spec.name], e.call(aten.slice.Tensor, states[spec.name], 2, 0, sinks))
    for port, node in graph.ports("input").items():
        type_: TensorType = node.meta["type"]
        if is_mask(port):
            node.meta["type"] = replace(type_, dims=(*type_.dims[:3], f"T+{sinks}" if sinks else "T"))
        elif is_held(port):
            node.meta["type"] = replace(type_, dims=_put(type_.dims, slots_dim(program, port), sinks))


@dataclass(frozen=True)
class WindowStart:
    """Of a program, windows of `window` tokens (L) and `sinks`."""

    program: ProgramGraphs
    window: int
    sinks: int

    def given(self, read: Collection[str]) -> Graph:
        """embed at the window's start: counters [B] (and the window's tokens) -> those of its results that are `read`.

        Where the token ids themselves are, they become state.
        """
        graph = self.program.embed.clone()
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
        self._replace_tokens(graph, e)
        results = graph.results()
        late = Emit(graph, "loop")
        for name in sorted(read):
            if is_mask(name):
                results[name] = self._confined(late, results[name])
            elif is_held(name):
                dim = slots_dim(self.program, name)
                results[name] = late.call(aten.slice.Tensor, results[name], dim, 0, self.sinks)
        graph.set_returns(results)
        graph.drop_dead()
        drop_ports(graph)
        infer_types(graph)
        return graph

    def _replace_tokens(self, graph: Graph, e: Emit) -> None:
        """Sizes are known; if the ids themselves are read, they become state."""
        ports = graph.ports()
        tokens, rows = ports["tokens"], ports["position"]
        for user in list(tokens.users):
            if user.target is aten.sym_size.int:
                user.replace_all_uses_with(e.size(rows, 0) if user.args[1] == 0 else self.window)  # type: ignore[arg-type]
                graph.fx.erase_node(user)
        if tokens.users:
            spec = record_tokens(self.program, self.window)
            port = ports.get(spec.name) or graph.add_port("state", spec.name, spec.type())
            replace_uses(tokens, e.call(aten.select.int, port, 1, 0))

    def _confined(self, e: Emit, mask: fx.Node) -> fx.Node:
        """The mask's columns for sinks and for the window's own tokens, which come last."""
        own = e.call(aten.slice.Tensor, mask, -1, -self.window, 1 << 62)
        return e.call(aten.cat.default, [e.call(aten.slice.Tensor, mask, -1, 0, self.sinks), own], -1)


def replace_uses(old: fx.Node, new: fx.Node) -> None:
    """Let everything that read `old`, but for `new` itself, read `new`."""
    for user in [user for user in old.users if user is not new]:
        user.replace_input_with(old, new)


def drop_ports(graph: Graph) -> None:
    """Ports of state and input that nothing reads; parameters stay, as the layout names them."""
    for node in [*graph.ports("state").values(), *graph.ports("input").values()]:
        if not node.users:
            graph.fx.erase_node(node)


def without_new(cls: BlockClass) -> Graph:
    """Wake's h and the memories of the model's own: all that passes make of a block without a new memory."""
    copy, own = cls.wake.clone(), [spec.name for spec in with_role(cls.states, "own")]
    copy.set_returns({name: copy.results()[name] for name in ("h", *own)})
    copy.drop_dead()
    return copy


def slots_dim(program: ProgramGraphs, held: str) -> int:
    """The dimension of slots in what is made of the positions of kept keys: that of tokens in what it is like."""
    return type_of(program.embed, unheld(held)).dims.index("T")


def _put(dims: tuple[int | str, ...], at: int, size: int) -> tuple[int | str, ...]:
    return (*dims[:at], size, *dims[at + 1 :])
