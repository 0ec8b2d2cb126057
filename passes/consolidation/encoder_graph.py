"""Consolidation `tokens`: the graph that makes soft tokens of the window that a sleep ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import fx

from sleepc.ir.graph import PARAMETERS, Graph, PortKind, is_call
from sleepc.ir.infer import infer_types
from sleepc.ir.parameters import block_key
from sleepc.ir.program import SOFT, ProgramGraphs
from sleepc.ir.states import StateSpec, find_state, with_role
from sleepc.ir.types import TensorType, wide_dtype
from sleepc.masks import Mask
from sleepc.passes.analysis.find_sites import attention_of
from sleepc.passes.consolidation.soft_tokens import LOW_A, LOW_B, PLACE, TOKEN
from sleepc.passes.consolidation.window_again import drop_ports, slots_dim
from sleepc.passes.lib.emit import Emit, aten
from sleepc.passes.rewrite.bound_attention import OFFSET, POSITION, SINCE
from sleepc.passes.rewrite.kept_pairs import QUERIES
from sleepc.passes.rewrite.key_positions import is_held
from sleepc.passes.rewrite.window_masks import is_mask

Values = dict[fx.Node, fx.Node]
Reading = Literal["behind", "alone", "window"]
"""Places behind the window; soft tokens in its place, which see the sinks alone; the window itself once more."""


def own_mask(program: ProgramGraphs, mask: str) -> Mask:
    """The layers' own mask, of what embed hands on to them."""
    return Mask.parse(str(program.embed.results()[mask].kwargs["sees"]))


def without_kept(wake: Graph) -> Graph:
    """A block without what it keeps: (h, ..) -> h, and k and v of its tokens as the window would hold them."""
    graph = wake.clone()
    node = attention_of(graph)
    if is_call(node, torch.ops.sleepc.kept_attention.default):
        e = Emit(graph, str(node.meta.get("source", "")), node)
        alone = e.ours("window_attention", *node.args[:6], node.args[9], **node.kwargs)
        alone.meta["type"] = node.meta["type"]
        node.replace_all_uses_with(alone)
        graph.fx.erase_node(node)
    results: dict[str, Any] = graph.results()
    graph.set_returns({"h": results["h"], **{part: results[part].args[1] for part in ("k", "v")}})
    graph.drop_dead()
    drop_ports(graph)
    return graph


@dataclass
class EncoderGraph:
    """Writes the graph for `tokens` (k) soft tokens of a `window` (L). What an encoder `added` to the window's tokens
    that they begin as runs through the blocks as they are, in its place; keys and values come of that. `plain`: the
    blocks by class, `without_kept`.
    """

    program: ProgramGraphs
    tokens: int
    window: int
    sinks: int
    plain: Mapping[str, Graph]
    result: Graph = field(default_factory=lambda: Graph("encode"))
    ports: dict[str, fx.Node] = field(default_factory=dict)

    def written(self) -> Graph:
        """The whole of it."""
        self.result.set_returns({"position": self.state(POSITION)})
        added = self.added()
        results: dict[str, fx.Node] = {}
        e, alone = self.e, self.embedded(self.begun, self.place)
        h = e.add(alone["h"], e.cast(added, self.program.dtype))
        for i, block in enumerate(self.program.layout):
            made = self.block(i, self.plain[block.cls], {**alone, "h": h}, "alone")
            h = made["h"]
            states = self.program.classes[block.cls].states
            if with_role(states, "kept"):
                for part in ("k", "v"):
                    spec = find_state(states, "kv", part)
                    assert spec is not None
                    results[f"{i}.{SOFT}{part}"] = e.cast(made[part], spec.dtype)
        read = e.call(aten.gt.Scalar, self.column(SINCE), 0)
        results[PLACE] = e.where(read, self.place, -1)
        results[TOKEN] = e.where(read, self.token, -1)
        self.result.set_returns(results)
        self.result.drop_dead()
        drop_ports(self.result)
        for kind in PARAMETERS:
            for port in self.result.ports(kind).values():
                if not port.users:
                    self.result.fx.erase_node(port)
        infer_types(self.result)
        return self.result

    def added(self) -> fx.Node:
        """What the encoder adds to the embeddings that soft tokens begin as [B,k,d], in the dtype of memories."""
        raise NotImplementedError

    @property
    def e(self) -> Emit:
        """Writes at the end."""
        return Emit(self.result, "encoder")

    def state(self, spec: StateSpec) -> fx.Node:
        """Its port."""
        return self._port("state", spec.name, spec.type())

    def param(self, key: str) -> fx.Node:
        """The port of a parameter that the encoder has of its own, in the dtype of memories."""
        shape = self.program.params[key].shape
        return self._port("param", key, TensorType(wide_dtype(self.program.dtype), tuple(shape)))

    def _port(self, kind: PortKind, name: str, type_: TensorType) -> fx.Node:
        if name not in self.ports:
            self.ports[name] = self.result.add_port(kind, name, type_)
        return self.ports[name]

    def column(self, spec: StateSpec) -> fx.Node:
        """A counter [B,1]."""
        return self.e.unsqueeze(self.state(spec), 1)

    # -- places -------------------------------------------------------------------------------------

    @cached_property
    def steps(self) -> fx.Node:
        """0 .. k-1."""
        return self.e.call(aten.arange.default, self.tokens)

    @cached_property
    def index(self) -> fx.Node:
        """Which of the window's n tokens soft token j begins as, [B,k]: the last one of the (j+1)-th part of k."""
        e = self.e
        ends = e.mul(self.column(SINCE), e.call(aten.add.Scalar, self.steps, 1))
        last = e.call(aten.floor_divide.Scalar, ends, self.tokens)
        return e.call(aten.clamp.default, e.call(aten.sub.Scalar, last, 1), 0)

    @cached_property
    def ids(self) -> fx.Node:
        """The window's tokens [B,L]."""
        tokens = find_state(self.program.states, "loop", "window_tokens")
        assert tokens is not None
        return self.e.call(aten.select.int, self.state(tokens), 1, 0)

    @cached_property
    def places(self) -> fx.Node:
        """0 .. L-1."""
        return self.e.call(aten.arange.default, self.window)

    @cached_property
    def real(self) -> fx.Node:
        """Which of them were read [B,L]."""
        return self.e.call(aten.lt.Tensor, self.places, self.column(SINCE))

    @cached_property
    def numbers(self) -> fx.Node:
        """Their numbers in the stream [B,L]."""
        return self.e.add(self.e.sub(self.column(POSITION), self.column(SINCE)), self.places)

    @cached_property
    def begun(self) -> fx.Node:
        """The ids of those that soft tokens begin as [B,k]."""
        return self.e.call(aten.gather.default, self.ids, 1, self.index)

    @cached_property
    def token(self) -> fx.Node:
        """Their numbers in the stream [B,k]."""
        return self.e.add(self.e.sub(self.column(POSITION), self.column(SINCE)), self.index)

    @cached_property
    def place(self) -> fx.Node:
        """Their positions as the model counts [B,k]."""
        return self.counted(self.token)

    def counted(self, positions: fx.Node) -> fx.Node:
        return self.e.sub(positions, self.column(OFFSET)) if OFFSET in self.program.states else positions

    # -- readings -----------------------------------------------------------------------------------

    def unit(self, h: fx.Node) -> fx.Node:
        """Vectors [..,d] over their root mean squares, in the dtype of memories."""
        e, x = self.e, self.e.cast(h, wide_dtype(self.program.dtype))
        mean = e.call(aten.mean.dim, e.mul(x, x), [-1], True)
        return e.mul(x, e.call(aten.rsqrt.default, e.call(aten.add.Scalar, mean, 1e-6)))

    def embedded(self, tokens: fx.Node, positions: fx.Node) -> dict[str, fx.Node]:
        """What embed makes of these tokens at these positions, both [B,n], by the names of its results: h, and what
        blocks read of positions.
        """
        embed = self.program.embed
        results, ports = embed.results(), embed.ports()
        counted = results[QUERIES].args[1]  # where a token is real, its position
        assert isinstance(counted, fx.Node)
        wanted = ["h", *self._read(lambda name: not is_held(name))]
        made = {ports["tokens"]: tokens, counted: positions}
        self._copy(embed, [results[name] for name in wanted], made, {})
        return {name: made[results[name]] for name in wanted} | self._held()

    def _held(self) -> dict[str, fx.Node]:
        """What embed makes of the positions of the keys in windows."""
        embed, made = self.program.embed, Values()
        results = embed.results()
        names = self._read(is_held)
        self._copy(embed, [results[name] for name in names], made, {})
        return {name: made[results[name]] for name in names}

    def _read(self, which: Callable[[str], bool]) -> list[str]:
        """What blocks read in addition to h, but for masks."""
        names = dict.fromkeys(name for graph in self.plain.values() for name in graph.ports("input"))
        return [name for name in names if name != "h" and not is_mask(name) and which(name)]

    def block(self, i: int, graph: Graph, given: Mapping[str, fx.Node], reading: Reading) -> dict[str, fx.Node]:
        """Block i on `given` -> h, k, v of its tokens."""
        e, made = self.e, Values()
        block, ports = self.program.layout[i], graph.ports()
        keys = {port: block_key(i, SOFT + port) for port in ports if port.endswith((LOW_A, LOW_B))}
        for name, port in ports.items():
            if port.meta["port"].kind != "input":
                continue
            if is_mask(name):
                made[port] = self._mask(name, reading)
            elif is_held(name) and reading != "behind":
                dim = slots_dim(self.program, name)
                made[port] = e.call(aten.slice.Tensor, given[name], dim, 0, self.sinks)
            else:
                made[port] = given[name]
        full = self.program.state_names(i)
        for spec in with_role(self.program.classes[block.cls].states, "kv"):
            if spec.name in ports:
                old = self._port("state", full[spec.name], spec.type())
                made[ports[spec.name]] = (
                    old if reading == "behind" else e.call(aten.slice.Tensor, old, 2, 0, self.sinks)
                )
        results = graph.results()
        self._copy(graph, list(results.values()), made, {**block.params, **keys})
        return {name: made[node] for name, node in results.items()}

    def _copy(self, source: Graph, wanted: Iterable[fx.Node], made: Values, keys: Mapping[str, str]) -> None:
        """Write what makes `wanted` of what is `made`, which gets it. Ports that are not made are parameters, named by
        `keys` where these have their name, and counters.
        """
        needed = set(wanted)
        for node in reversed(list(source.fx.nodes)):
            if node in needed and node not in made:
                needed.update(node.all_input_nodes)
        e = self.e
        for node in source.fx.nodes:
            if node not in needed or node in made:
                continue
            if node.op == "placeholder":
                port = node.meta["port"]
                made[node] = self._port(port.kind, keys.get(port.name, port.name), node.meta["type"])
            else:
                args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), made.__getitem__)
                e.source = str(node.meta.get("source", ""))
                made[node] = e.call(node.target, *args, **kwargs)

    # -- who sees whom ------------------------------------------------------------------------------

    def _mask(self, name: str, reading: Reading) -> fx.Node:
        """Bool [B,1,n,slots+n]: the sinks and, behind the window, what the ring still holds of it; and of what is read
        that which comes before. A layer with a window of its own sees no further than that.
        """
        made: dict[tuple[str, str], fx.Node] = self.__dict__.setdefault("masks", {})
        if (name, reading) not in made:
            made[name, reading] = self._new_mask(name, reading)
        return made[name, reading]

    def _new_mask(self, name: str, reading: Reading) -> fx.Node:
        e, own = self.e, own_mask(self.program, name).window
        length = int(str(self.program.embed.results()[name].kwargs["window"])) if reading == "behind" else 0
        queries, order = self._queries(reading)
        past = e.unsqueeze(queries, 2)
        held, there = self._slots(length, reading)
        distance = e.sub(past, e.unsqueeze(held, 1) if length else held)  # [B,n,slots]
        seen = self._and(e.unsqueeze(there, 1), e.call(aten.ge.Scalar, distance, 0))
        others = e.sub(past, e.unsqueeze(queries, 1))  # [B,n,n]
        among = e.call(aten.le.Tensor, e.unsqueeze(order, 0), e.unsqueeze(order, 1))
        among = self._and(among, e.call(aten.ge.Scalar, others, 0))
        if reading == "window":
            among = self._and(among, e.unsqueeze(self.real, 1))
        if own:
            seen = self._and(seen, e.call(aten.lt.Scalar, distance, own))
            among = self._and(among, e.call(aten.lt.Scalar, others, own))
        return e.unsqueeze(e.call(aten.cat.default, [seen, among], -1), 1)

    def _queries(self, reading: Reading) -> tuple[fx.Node, fx.Node]:
        """Numbers in the stream of what is read [B,n], and its order [n]."""
        if reading == "behind":
            return self.e.add(self.column(POSITION), self.steps), self.steps
        return (self.token, self.steps) if reading == "alone" else (self.numbers, self.places)

    def _slots(self, length: int, reading: Reading) -> tuple[fx.Node, fx.Node]:
        """The numbers of the tokens in sinks and `length` slots more, [slots] or [B,slots], and which of them are there
        to be seen [B,slots]: of the ring those of the window, and sinks, in the window's own place those before it.
        """
        e, sinks, position = self.e, self.sinks, self.column(POSITION)
        slot = e.call(aten.arange.default, sinks + length)
        before = e.sub(position, self.column(SINCE)) if reading == "window" else position
        there = e.call(aten.lt.Tensor, slot, before)
        if not length:
            return slot, there
        last = e.call(aten.sub.Scalar, position, 1)
        ring = e.sub(last, e.call(aten.remainder.Scalar, e.sub(last, slot), length))
        start = e.call(aten.clamp.default, e.sub(position, self.column(SINCE)), sinks)
        sink = e.call(aten.lt.Scalar, slot, sinks)
        in_ring = self._and(e.call(aten.ge.Scalar, slot, sinks), e.call(aten.ge.Tensor, ring, start))
        return e.where(sink, slot, ring), e.call(aten.logical_or.default, self._and(sink, there), in_ring)

    def _and(self, a: fx.Node, b: fx.Node) -> fx.Node:
        return self.e.call(aten.logical_and.default, a, b)
