"""What the memory passes share: options, new parameters, masked gates, the memory's state and the record of a
window.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import fx

from sleepc.ir.program import Block, BlockClass, ProgramGraphs, StateSpec
from sleepc.ir.types import TensorType
from sleepc.ir.weights import HeldTensor
from sleepc.ops.rules import find as find_rule
from sleepc.passes.bound_attention import embed_port
from sleepc.passes.emit import Emit, aten
from sleepc.passes.find_sites import Site

Write = Literal["sleep", "online"]
Initial = Callable[[torch.Generator], torch.Tensor]


@dataclass(frozen=True)
class MemoryOptions:
    """How the memories of a program are built: semantics.md, sections 3 to 5."""

    rule: str
    write: Write
    window: int
    passes: int
    seed: int

    @property
    def recorded(self) -> bool:
        """Does a sleep need the window's keys, values and gates?"""
        return self.write == "sleep" or self.passes > 1


@dataclass(frozen=True)
class NewParam:
    """A parameter that the conversion adds to every block of a class."""

    name: str
    shape: tuple[int, ...]
    initial: Initial


def row(*shape: int) -> tuple[int | str, ...]:
    """The dimensions of a state of this shape per row."""
    return ("B", *shape)


class MemoryBuilder:
    """Adds the ports, states and parameters of one memory to a block class."""

    def __init__(self, program: ProgramGraphs, cls: BlockClass, options: MemoryOptions, site: Site) -> None:
        self.program, self.cls, self.options, self.site = program, cls, options, site
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
        shapes: dict[str, tuple[int, ...]] = find_rule(self.options.rule).states(site.kv_heads, site.d_k, site.d_v)
        return {n: self.state(StateSpec(n, row(*shape), self.dtype, "accumulate")) for n, shape in shapes.items()}

    def gates(self, e: Emit, x: fx.Node, real: fx.Node) -> tuple[fx.Node, fx.Node]:
        """g and beta [B,Hkv,T] from x [B,T,hidden], 0 at padding.

        g = -exp(A)·softplus(W_a x + dt), beta = sigmoid(W_b x + b) (conversion.md 1, after Gated DeltaNet, 2412.06464).
        """
        heads, hidden = self.site.kv_heads, self.program.hidden
        w_a = self.param("memory.w_a", (heads, hidden), zeros(heads, hidden))
        dt = self.param("memory.dt", (heads,), self._half_lives)
        log_a = self.param("memory.log_a", (heads,), zeros(heads))
        w_b = self.param("memory.w_b", (heads, hidden), zeros(heads, hidden))
        b_b = self.param("memory.b_b", (heads,), zeros(heads))
        softplus = e.call(aten.softplus.default, e.linear(x, w_a, dt))
        g = e.neg(e.mul(softplus, e.call(aten.exp.default, log_a)))
        beta = e.call(aten.sigmoid.default, e.linear(x, w_b, b_b))
        mask = e.unsqueeze(real, -1)
        return tuple(e.transpose(e.mul(value, mask), 1, 2) for value in (g, beta))  # type: ignore[return-value]

    def _half_lives(self, _: torch.Generator) -> torch.Tensor:
        """dt such that a head forgets half within L to 16 L tokens, spread over the heads: softplus(dt) = ln 2 /
        half-life.
        """
        heads, window = self.site.kv_heads, self.options.window
        steps = (
            torch.linspace(0, 4, heads, dtype=torch.float64) if heads > 1 else torch.tensor([2.0], dtype=torch.float64)
        )
        rate = math.log(2) / (window * 2.0**steps)
        return torch.log(torch.expm1(rate))

    def record(self, e: Emit, name: str, value: fx.Node, dtype: torch.dtype, width: tuple[int, ...]) -> fx.Node:
        """Write `value` [B,Hkv,T,..] of the new tokens into a record of the window; the result is the new record."""
        dims = row(self.site.kv_heads, self.options.window, *width)
        port = self.state(StateSpec(name, dims, dtype, "ring"))
        return e.ours("write_slots", port, value, self.shared("record_slots"))

    def finish(self, results: dict[str, fx.Node]) -> None:
        """Set the results and register the class's new states."""
        self.graph.set_returns(results)
        self.graph.drop_dead()
        self.cls.states = (*self.cls.states, *self.states)


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


def chosen_classes(program: ProgramGraphs, layers: tuple[int, ...]) -> list[str]:
    """Split classes so that each is chosen entirely or not at all, and return the chosen ones, in order."""
    chosen: list[str] = []
    for name in list(program.classes):
        members = [i for i, block in enumerate(program.layout) if block.cls == name]
        inside = [i for i in members if i in layers]
        if not inside:
            continue
        target = name
        if len(inside) < len(members):
            target = f"block.{len(program.classes)}"
            old = program.classes[name]
            copy = BlockClass(old.wake.clone(), old.sleep.clone() if old.sleep else None, old.states)
            copy.wake.name = target
            program.classes[target] = copy
            for i in inside:
                program.layout[i] = Block(target, program.layout[i].params)
        chosen.append(target)
    return chosen
