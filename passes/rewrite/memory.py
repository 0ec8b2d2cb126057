"""What the memory passes share: new parameters, masked gates, the memory's state, its reads and writes, and the record
of a window.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from sleepc.errors import UsageError
from sleepc.ir.graph import Graph
from sleepc.ir.infer import infer_types
from sleepc.ir.parameters import block_key
from sleepc.ir.program import BlockClass, ProgramGraphs
from sleepc.ir.states import StateSpec, with_role
from sleepc.ir.types import TensorType, wide_dtype
from sleepc.ir.weights import HeldTensor
from sleepc.memory.features import find as find_features
from sleepc.memory.parameters import PREFIX, GateParameters, Initial, Parameter, Sizes, of_gate, of_learned
from sleepc.memory.registry import find as find_rule
from sleepc.memory.rule import Gate, Rule
from sleepc.passes.analysis.find_sites import Site
from sleepc.passes.lib.classes import chosen_classes, embed_port
from sleepc.passes.lib.emit import Emit, aten
from sleepc.passes.plan import Groups, MemoryOptions
from sleepc.passes.rewrite.kept_pairs import slots_specs

EPSILON = 1e-6  # of norms in layers of ours; a native layer has the model's
PLACES = ("g", "beta")  # gates that have places of their own among an operator's arguments
Made = Callable[[Mapping[str, torch.Tensor]], torch.Tensor]
Rewrite = Callable[[ProgramGraphs, BlockClass, MemoryOptions], "list[NewParam]"]
Written = dict[str, fx.Node]
"""What the tokens of a step write: k, v [B,H,T,D], and every gate of the rule [B,H,T], a wide one [B,H,T,d_k]. At
padding k is 0, and gates have the values that leave memories unchanged."""


@dataclass(frozen=True)
class NewParam:
    """A parameter that the conversion adds to every block of a class; `made` of the block's own ones, by port, if that
    is given.
    """

    name: str
    shape: tuple[int, ...]
    initial: Initial
    made: Made | None = None


def row(*shape: int) -> tuple[int | str, ...]:
    """The dimensions of a state of this shape per row."""
    return ("B", *shape)


def absent(e: Emit, rule: Rule, gates: Written) -> Written:
    """Zeros for the gates that have a place among an operator's arguments, and that the rule does not have."""
    like = gates.get("beta") or gates[next(iter(rule.gates))]
    return {name: e.call(aten.zeros_like.default, like) for name in PLACES if name not in rule.gates}


def learned(e: Emit, rule: Rule, wake: Graph, heads: int) -> list[fx.Node]:
    """What the layer has learned [heads, rows, columns], in a graph of the class whose wake graph is given."""
    found = []
    for name in rule.learned:
        port = PREFIX + name
        type_ = wake.ports()[port].meta["type"]
        node = e.graph.ports().get(port) or e.graph.add_port("param", port, type_)
        rows, columns = (int(dim) for dim in type_.dims)
        found.append(e.reshape(node, [heads, rows // heads, columns]))
    return found


def operands(rule: Rule, written: Written, states: list[fx.Node]) -> list[Any]:
    """Arguments of an operator that writes: k, v, g, beta, states and what was learned, and the rule's other gates if
    it has some.
    """
    others = [written[name] for name in rule.gates if name not in PLACES]
    return [*(written[name] for name in ("k", "v", *PLACES)), states, *([others] if others else [])]


class MemoryBuilder:
    """Adds the ports, states and parameters of one memory, of `heads` heads, to a block class, and `results`. `width`:
    of its keys.
    """

    def __init__(
        self, program: ProgramGraphs, cls: BlockClass, options: MemoryOptions, site: Site, heads: int | None = None
    ) -> None:
        self.program, self.cls, self.options, self.site = program, cls, options, site
        self.heads = heads or site.kv_heads
        self.sizes = Sizes(site.q_heads, self.heads, site.d_k, site.d_v, program.hidden)
        self.rule, self.width = find_rule(options.rule), find_features(options.features).width(site.d_k)
        if self.rule.square and self.width != site.d_v:
            raise UsageError(
                f"rule {self.rule.name} needs keys and values of one width, and these have {self.width} and {site.d_v}",
                where=f"block class {cls.wake.name}",
                fix="Use another --rule, or other --features.",
            )
        self.graph = cls.wake
        self.dtype = wide_dtype(program.dtype)
        self.epsilon = EPSILON
        self.new: list[NewParam] = []
        self.states: list[StateSpec] = []
        self.results = cls.wake.results()

    def param(
        self,
        parameter: Parameter,
        initial: Initial | None = None,
        made: Made | None = None,
        *,
        of_keys: bool = False,
    ) -> fx.Node:
        """A new parameter port in the memory's dtype; `initial` makes another value than the parameter's own, and
        `made` one of the block's parameters. With `of_keys` d_k is the width of the memory's keys.
        """
        shape = parameter.shape(replace(self.sizes, d_k=self.width) if of_keys else self.sizes)
        self.new.append(NewParam(parameter.port, shape, initial or parameter.converted, made))
        return self.graph.add_port("param", parameter.port, TensorType(self.dtype, shape))

    def state(self, spec: StateSpec) -> fx.Node:
        """A new state port."""
        self.states.append(spec)
        return self.graph.add_port("state", spec.name, spec.type())

    def shared(self, name: str) -> fx.Node:
        """A value that embed hands on."""
        return embed_port(self.program, self.graph, name)

    def memories(self) -> dict[str, fx.Node]:
        """State ports of the rule's tensors."""
        shapes = self.rule.shapes(self.heads, self.width, self.site.d_v)
        return {
            name: self.state(
                StateSpec("memory", name, row(*shape), self.dtype, "accumulate", self.rule.states[name].initial)
            )
            for name, shape in shapes.items()
        }

    def gates(self, e: Emit, x: fx.Node, real: fx.Node) -> dict[str, fx.Node]:
        """The rule's gates by name, and what stands for `absent` ones, from x [B,T,hidden]; `real` bool [B,T] is
        false at padding.

        conversion.md 1, after Gated DeltaNet (2412.06464); a decay per channel as in Gated Linear Attention
        (2312.06635).
        """
        mask = e.unsqueeze(real, -1)
        made = {name: self._gate(e, gate, x, mask) for name, gate in self.rule.gates.items()}
        return made | absent(e, self.rule, made)

    def _gate(self, e: Emit, gate: Gate, x: fx.Node, mask: fx.Node) -> fx.Node:
        """[B,H,T], or [B,H,T,d_k], with its value at padding there."""
        if gate.activation == "one":
            size = [e.size(x, 0), e.size(x, 1), self.heads]
            every = e.call(aten.expand.default, e.cast(mask, self.dtype), size)
            return e.transpose(self._masked(e, gate, every, mask), 1, 2)
        parameters = of_gate(gate, self.options.decay)
        if gate.activation == "decay":
            return self._decay(e, gate, parameters, x, mask)
        weight = self.param(parameters.weight, of_keys=True)
        if gate.activation == "code":
            code = e.reshape(e.linear(x, weight), [e.size(x, 0), e.size(x, 1), self.heads, self.width])
            return e.transpose(e.mul(e.ours("l2norm", code), e.unsqueeze(mask, -1)), 1, 2)
        bias = None if self.options.layout == "native" else self.param(parameters.bias)
        target = aten.sigmoid.default if gate.activation == "sigmoid" else aten.softplus.default
        value = e.call(target, e.linear(x, weight, bias))
        return e.transpose(self._masked(e, gate, value, mask), 1, 2)

    def _masked(self, e: Emit, gate: Gate, value: fx.Node, mask: fx.Node) -> fx.Node:
        return e.where(mask, value, gate.at_padding) if gate.at_padding else e.mul(value, mask)

    def _decay(self, e: Emit, gate: Gate, parameters: GateParameters, x: fx.Node, mask: fx.Node) -> fx.Node:
        """-exp(A) softplus(W x + b)."""
        heads = self.heads
        weight = self.param(parameters.weight, of_keys=True)
        rows = int(weight.meta["type"].dims[0])
        each = self._half_lives().repeat_interleave(rows // heads)
        bias = self.param(parameters.bias, lambda *_: each, of_keys=True)
        rate = self.param(parameters.rate, of_keys=True)
        softplus = e.call(aten.softplus.default, e.linear(x, weight, bias))
        g = self._masked(e, gate, e.neg(e.mul(softplus, e.call(aten.exp.default, rate))), mask)
        if rows > heads:
            g = e.reshape(g, [e.size(x, 0), e.size(x, 1), heads, rows // heads])
        return e.transpose(g, 1, 2)

    def _half_lives(self) -> torch.Tensor:
        """dt such that a head forgets half within L to 16 L tokens, spread over the heads: softplus(dt) = ln 2 /
        half-life. The passes of a loop decay each time, so half-lives in it are longer by that factor.
        """
        heads, window = self.heads, self.options.window
        doublings = torch.linspace(0, 4, heads, dtype=torch.float64) if heads > 1 else torch.tensor([2.0]).double()
        decays = self.options.asleep.decays
        return torch.log(torch.expm1(math.log(2) / (decays * window * 2.0**doublings)))

    def answer(self, e: Emit, q: fx.Node, written: Written, scale: float) -> fx.Node:
        """What q reads from the memory; with write time `online` every token is written first, or after it has read."""
        memories = self.memories()
        for name, each in self.rule.learned.items():
            self.param(of_learned(name, each), of_keys=True)
        held = [*memories.values(), *learned(e, self.rule, self.graph, self.heads)]
        options = {"rule": self.rule.name, "scale": scale}
        if self.options.write == "sleep":
            return e.ours("delta_rule_read", q, held, **options)
        first = before = None
        if self.options.read == "before":  # what the token before has left: queries ask one token earlier
            first, others = (e.call(aten.slice.Tensor, q, 2, *ends) for ends in ((0, 1), (1, 1 << 62)))
            before = e.ours("delta_rule_read", first, held, **options)
            q = e.call(aten.cat.default, [others, first], 2)
        both = e.ours("delta_rule", q, *operands(self.rule, written, held), **options)
        self.results |= {name: e.item(both, 1 + i) for i, name in enumerate(memories)}
        if before is None:
            return e.item(both, 0)
        return e.call(aten.cat.default, [before, e.call(aten.slice.Tensor, e.item(both, 0), 2, 0, -1)], 2)

    def records(self, e: Emit, written: Written, *, with_v: bool) -> None:
        """The window's keys, values and gates, if a sleep needs them; values may be in the KV window. If it drops kept
        pairs, slots hold theirs too, but for gates of time.
        """
        if not self.options.asleep.recorded:
            return
        dtype, site = self.program.dtype, self.site
        parts: list[tuple[str, fx.Node, torch.dtype, tuple[int, ...]]] = [
            ("k", e.cast(written["k"], dtype), dtype, (self.width,))
        ]
        if with_v:
            parts.append(("v", e.cast(written["v"], dtype), dtype, (site.d_v,)))
        for name, gate in self.rule.gates.items():
            wide = gate.wide(self.options.decay)
            parts.append((name, written[name], self.dtype, (self.width,) if wide else ()))
        for name, value, kept, width in parts:
            padding = self.rule.gates[name].at_padding if name in self.rule.gates else 0.0
            dims = row(self.heads, self.options.window, *width)
            spec = StateSpec("record", name, dims, kept, "ring", padding)
            if self._drops and not (name in self.rule.gates and self.rule.gates[name].of_time):
                self.states.extend(slots_specs(spec, self.cls.states))
            self.results[spec.name] = e.ours("write_slots", self.state(spec), value, self.shared("record_slots"))

    @property
    def _drops(self) -> bool:
        """Is a pair that slots keep written when they drop it?"""
        waits = self.options.write == "sleep" and self.options.asleep.drops
        return waits and bool(with_role(self.cls.states, "kept"))

    def finish(self, written: Written) -> None:
        """Set the results, register the class's new states, and keep what recurrent passes run, if any."""
        if self.options.asleep.again:
            self.cls.again = self._again(written)
        self.graph.set_returns(self.results)
        self.graph.drop_dead()
        self.cls.states = (*self.cls.states, *self.states)

    def _again(self, written: Written) -> Graph:
        """The block as a map (h, ..) -> (h, memory'): what is read only in wake is written at the end of the pass."""
        names, results = list(self.rule.states), self.results
        if self.options.write == "sleep":
            e, old = Emit(self.graph, "memory"), [self.graph.ports("state")[name] for name in names]
            old += learned(e, self.rule, self.graph, self.heads)
            new = e.ours("replay", *operands(self.rule, written, old), rule=self.rule.name, passes=1, written=False)
            results = {**results, **{name: e.item(new, i) for i, name in enumerate(names)}}
        own = (spec.name for spec in with_role(self.cls.states, "own"))
        self.graph.set_returns({name: results[name] for name in ("h", *names, *own)})
        copy = self.graph.clone()
        copy.drop_dead()
        return copy


def add_to_layout(program: ProgramGraphs, cls: str, new: list[NewParam], seed: int) -> None:
    """Make the new parameters of every block of class `cls`; a block's values depend on the seed and its index only."""
    dtype = wide_dtype(program.dtype)
    for i, block in enumerate(program.layout):
        if block.cls != cls:
            continue
        generator = torch.Generator().manual_seed(seed * 1_000_003 + i)
        keys = dict(block.params)
        for param in new:
            key = block_key(i, param.name)
            own = (
                {port: program.params[name].materialise() for port, name in block.params.items()} if param.made else {}
            )
            value = param.made(own) if param.made else param.initial(param.shape, generator)
            program.params[key] = HeldTensor(value.to(dtype), new=True)
            keys[param.name] = key
        program.layout[i] = replace(block, params=keys)


def add_memories(program: ProgramGraphs, groups: Groups, rewrite: Rewrite) -> int:
    """`rewrite` every class of the groups' layers and make its new parameters; the number of classes."""
    count = 0
    for group in groups:
        for name in chosen_classes(program, group.layers):
            cls = program.classes[name]
            new = rewrite(program, cls, group.options)
            for graph in cls.graphs():
                infer_types(graph)
            add_to_layout(program, name, new, group.options.seed)
            count += 1
    return count
