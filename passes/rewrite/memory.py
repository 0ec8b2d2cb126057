"""What the memory passes share: new parameters, masked gates, the memory's state, its reads and writes, and the record
of a window.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import fx

from sleepc.ir.graph import Graph
from sleepc.ir.infer import infer_types
from sleepc.ir.program import Block, BlockClass, ProgramGraphs
from sleepc.ir.states import StateSpec
from sleepc.ir.types import TensorType
from sleepc.ir.weights import HeldTensor
from sleepc.ops.rules import find as find_rule
from sleepc.passes.analysis.find_sites import Site
from sleepc.passes.lib.classes import chosen_classes, embed_port
from sleepc.passes.lib.emit import Emit, aten
from sleepc.passes.plan import Groups, MemoryOptions

Initial = Callable[[torch.Generator], torch.Tensor]
Rewrite = Callable[[ProgramGraphs, BlockClass, MemoryOptions], "list[NewParam]"]


@dataclass(frozen=True)
class NewParam:
    """A parameter that the conversion adds to every block of a class."""

    name: str
    shape: tuple[int, ...]
    initial: Initial


def row(*shape: int) -> tuple[int | str, ...]:
    """The dimensions of a state of this shape per row."""
    return ("B", *shape)


class Written(NamedTuple):
    """What the tokens of a step write: k, v [B,H,T,D], g [B,H,T] or [B,H,T,d_k], beta [B,H,T]; 0 at padding."""

    k: fx.Node
    v: fx.Node
    g: fx.Node
    beta: fx.Node


class MemoryBuilder:
    """Adds the ports, states and parameters of one memory, of `heads` heads, to a block class."""

    def __init__(
        self, program: ProgramGraphs, cls: BlockClass, options: MemoryOptions, site: Site, heads: int | None = None
    ) -> None:
        self.program, self.cls, self.options, self.site = program, cls, options, site
        self.heads = heads or site.kv_heads
        self.graph = cls.wake
        self.dtype = state_dtype(program.dtype)
        self.new: list[NewParam] = []
        self.states: list[StateSpec] = []

    def param(self, name: str, shape: tuple[int, ...], initial: Initial) -> fx.Node:
        """A new parameter port [shape] in the memory's dtype; `initial` makes its value for each block."""
        self.new.append(NewParam(name, shape, initial))
        return self.graph.add_port("param", name, TensorType(self.dtype, shape))

    def state(self, spec: StateSpec) -> fx.Node:
        """A new state port."""
        self.states.append(spec)
        return self.graph.add_port("state", spec.name, spec.type())

    def shared(self, name: str) -> fx.Node:
        """A value that embed hands on."""
        return embed_port(self.program, self.graph, name)

    def memories(self) -> dict[str, fx.Node]:
        """State ports of the rule's tensors."""
        site = self.site
        shapes: dict[str, tuple[int, ...]] = find_rule(self.options.rule).states(self.heads, site.d_k, site.d_v)
        return {
            n: self.state(StateSpec("memory", n, row(*shape), self.dtype, "accumulate")) for n, shape in shapes.items()
        }

    def gates(self, e: Emit, x: fx.Node, real: fx.Node) -> tuple[fx.Node, fx.Node]:
        """g [B,H,T], per channel [B,H,T,d_k], and beta [B,H,T] from x [B,T,hidden], 0 at padding.

        g = -exp(A)·softplus(W_a x + dt), beta = sigmoid(W_b x + b) (conversion.md 1, after Gated DeltaNet, 2412.06464;
        per channel as in Gated Linear Attention, 2312.06635). A rule without decay has g = 0 and no parameters for it.
        """
        heads, hidden = self.heads, self.program.hidden
        mask = e.unsqueeze(real, -1)
        g = self._decay(e, x, mask) if find_rule(self.options.rule).decays else None
        w_b = self.param("memory.w_b", (heads, hidden), zeros(heads, hidden))
        b_b = self.param("memory.b_b", (heads,), zeros(heads))
        beta = e.transpose(e.mul(e.call(aten.sigmoid.default, e.linear(x, w_b, b_b)), mask), 1, 2)
        return e.call(aten.zeros_like.default, beta) if g is None else g, beta

    def _decay(self, e: Emit, x: fx.Node, mask: fx.Node) -> fx.Node:
        heads, width, per_channel = self.heads, self.site.d_k, self.options.decay == "channel"
        rows = heads * width if per_channel else heads
        w_a = self.param("memory.w_a", (rows, self.program.hidden), zeros(rows, self.program.hidden))
        dt = self.param("memory.dt", (rows,), lambda _: self._half_lives().repeat_interleave(rows // heads))
        log_a = self.param("memory.log_a", (rows,), zeros(rows))
        softplus = e.call(aten.softplus.default, e.linear(x, w_a, dt))
        g = e.mul(e.neg(e.mul(softplus, e.call(aten.exp.default, log_a))), mask)
        if per_channel:
            g = e.reshape(g, [e.size(x, 0), e.size(x, 1), heads, width])
        return e.transpose(g, 1, 2)

    def _half_lives(self) -> torch.Tensor:
        """dt such that a head forgets half within L to 16 L tokens, spread over the heads: softplus(dt) = ln 2 /
        half-life. The passes of a loop decay each time, so half-lives in it are as many times longer.
        """
        heads, window = self.heads, self.options.window
        doublings = torch.linspace(0, 4, heads, dtype=torch.float64) if heads > 1 else torch.tensor([2.0]).double()
        passes = self.options.passes if self.options.again == "loop" else 1
        return torch.log(torch.expm1(math.log(2) / (passes * window * 2.0**doublings)))

    def answer(self, e: Emit, q: fx.Node, written: Written, scale: float, results: dict[str, fx.Node]) -> fx.Node:
        """What q reads from the memory; with write time `online` every token is written first, into `results`."""
        memories = self.memories()
        options = {"rule": self.options.rule, "scale": scale}
        if self.options.write == "sleep":
            return e.ours("delta_rule_read", q, list(memories.values()), **options)
        both = e.ours("delta_rule", q, *written, list(memories.values()), **options)
        results |= {name: e.item(both, 1 + i) for i, name in enumerate(memories)}
        return e.item(both, 0)

    def records(self, e: Emit, written: Written, results: dict[str, fx.Node], *, with_v: bool) -> None:
        """Where a sleep needs them: the window's keys, values, gates, in `results`. Values may be in the KV window."""
        if not self.options.recorded:
            return
        dtype, site = self.program.dtype, self.site
        parts: list[tuple[str, fx.Node, torch.dtype, tuple[int, ...]]] = [
            ("k", e.cast(written.k, dtype), dtype, (site.d_k,))
        ]
        if with_v:
            parts.append(("v", e.cast(written.v, dtype), dtype, (site.d_v,)))
        if find_rule(self.options.rule).decays:
            parts.append(("g", written.g, self.dtype, (site.d_k,) if self.options.decay == "channel" else ()))
        parts.append(("beta", written.beta, self.dtype, ()))
        for name, value, kept, width in parts:
            spec = StateSpec("record", name, row(self.heads, self.options.window, *width), kept, "ring")
            results[spec.name] = e.ours("write_slots", self.state(spec), value, self.shared("record_slots"))

    def finish(self, results: dict[str, fx.Node], written: Written) -> None:
        """Set the results, register the class's new states, and keep what recurrent passes run, if there are any."""
        if self.options.again:
            self.cls.again = self._again(results, written)
        self.graph.set_returns(results)
        self.graph.drop_dead()
        self.cls.states = (*self.cls.states, *self.states)

    def _again(self, results: dict[str, fx.Node], written: Written) -> Graph:
        """The block as a map (h, ..) -> (h, memory'): what is read only in wake is written at the end of the pass."""
        names = list(find_rule(self.options.rule).states(1, 1, 1))
        if self.options.write == "sleep":
            e, old = Emit(self.graph, "memory"), [self.graph.ports("state")[name] for name in names]
            new = e.ours("replay", *written, old, rule=self.options.rule, passes=1, written=False)
            results = {**results, **{name: e.item(new, i) for i, name in enumerate(names)}}
        self.graph.set_returns({name: results[name] for name in ("h", *names)})
        copy = self.graph.clone()
        copy.drop_dead()
        return copy


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Memories are float32, and float64 where the model is."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def zeros(*shape: int) -> Initial:
    """Starts at zero."""
    return lambda _: torch.zeros(*shape)


def filled(value: float, *shape: int) -> Initial:
    """Starts at one value."""
    return lambda _: torch.full(shape, value)


def identities(heads: int, width: int) -> Initial:
    """A square map for each head, stored as [heads·width, width] (torch.optim.Muon takes matrices only), identity at
    start.
    """
    return lambda _: torch.eye(width).repeat(heads, 1)


def normal(*shape: int) -> Initial:
    """Normal numbers of variance 1 / columns."""
    return lambda gen: torch.randn(*shape, generator=gen) * shape[-1] ** -0.5


def identity_taps(channels: int, taps: int) -> Initial:
    """A causal convolution that passes its input on: last tap 1, the others 0 (conversion.md 2 A)."""

    def make(_: torch.Generator) -> torch.Tensor:
        weight = torch.zeros(channels, taps)
        weight[:, -1] = 1
        return weight

    return make


def add_to_layout(program: ProgramGraphs, cls: str, new: list[NewParam], seed: int) -> None:
    """Make the new parameters of every block of class `cls`; a block's values depend on the seed and its index only."""
    dtype = state_dtype(program.dtype)
    for i, block in enumerate(program.layout):
        if block.cls != cls:
            continue
        generator = torch.Generator().manual_seed(seed * 1_000_003 + i)
        keys = dict(block.params)
        for param in new:
            key = f"blocks.{i}.{param.name}"
            program.params[key] = HeldTensor(param.initial(generator).to(dtype).reshape(param.shape), new=True)
            keys[param.name] = key
        program.layout[i] = Block(cls, keys)


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
