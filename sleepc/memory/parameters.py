"""The parameters of a memory's layer: names, shapes, and their values in every case, given here and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from sleepc.ir.parameters import block_key
from sleepc.memory.rule import DECAY, STRENGTH, Gate, LearnedTensor, Shape

Initial = Callable[[Shape, Generator], Tensor]
PREFIX = "memory."
KEY = re.compile(r"blocks\.(\d+)\.memory\.(.+)")


@dataclass(frozen=True)
class Sizes:
    """Of a layer: its query heads, its memories, the widths of a key and a value, and the hidden width."""

    q_heads: int
    heads: int
    d_k: int
    d_v: int
    hidden: int

    @property
    def widths(self) -> list[tuple[int, int]]:
        """(heads, width) of the parts of q|k|v."""
        return [(self.q_heads, self.d_k), (self.heads, self.d_k), (self.heads, self.d_v)]

    @property
    def channels(self) -> int:
        """Of q|k|v together."""
        return sum(heads * width for heads, width in self.widths)


def zeros(shape: Shape, _: Generator) -> Tensor:
    """Starts at zero."""
    return torch.zeros(shape)


def ones(shape: Shape, _: Generator) -> Tensor:
    """Starts at one."""
    return torch.ones(shape)


def filled(value: float) -> Initial:
    """Starts at one value."""
    return lambda shape, _: torch.full(shape, value)


def identities(shape: Shape, _: Generator) -> Tensor:
    """A square map for each head, stored as [heads·width, width] (torch.optim.Muon takes matrices only)."""
    return torch.eye(shape[1]).repeat(shape[0] // shape[1], 1)


def normal(shape: Shape, generator: Generator) -> Tensor:
    """Normal numbers of variance 1 / columns."""
    values: Tensor = torch.randn(*shape, generator=generator) * shape[-1] ** -0.5
    return values


def twins(shape: Shape, generator: Generator) -> Tensor:
    """Normal numbers of variance 1 / columns, the same for all such maps of a layer."""
    return normal(shape, Generator().manual_seed(generator.initial_seed()))


def small_diagonal(shape: Shape, generator: Generator) -> Tensor:
    """A square map that takes every channel times a normal number of deviation 0.02."""
    return torch.diag(torch.randn(shape[0], generator=generator) * 0.02)


def identity_taps(shape: Shape, _: Generator) -> Tensor:
    """A causal convolution that passes its input on: last tap 1, the others 0 (conversion.md 2 A)."""
    weight = torch.zeros(shape)
    weight[:, -1] = 1
    return weight


def half_taps(shape: Shape, generator: Generator) -> Tensor:
    """Uniform in [-1/2, 1/2]."""
    return torch.rand(shape, generator=generator) - 0.5


@dataclass(frozen=True)
class Parameter:
    """One parameter of a layer with a memory.

    name       in the port "memory.NAME" and the key "blocks.I.memory.NAME"
    shape      for a layer's sizes
    converted  its value when a model is converted
    scratch    in a layer of a new model, if that differs
    fresh      what memories that were never trained start learning from, if that is one number
    silent     if all that have such a value have it, the memory adds nothing to its layer, whatever the others are
    shaken     what noise is added to when a verification wants to see memories, if not to its own value
    slow       does it learn at a lower rate, being a projection of everything?
    """

    name: str
    shape: Callable[[Sizes], Shape]
    converted: Initial
    scratch: Initial | None = None
    fresh: float | None = None
    silent: float | None = None
    shaken: float | None = None
    slow: bool = False

    @property
    def port(self) -> str:
        """The name of its port in a block."""
        return PREFIX + self.name


TAPS = 4
TAPS_AROUND = 5  # of a convolution that sees two tokens on either side
# Strategy `parallel`: a memory next to attention. A mix of -4 is 2 %; of -2, 12 %: the first hardly teaches anything.
QUERY_MAP = Parameter("m_q", lambda s: (s.q_heads * s.d_k, s.d_k), identities)
KEY_MAP = Parameter("m_k", lambda s: (s.heads * s.d_k, s.d_k), identities)
MIX = Parameter("w_m", lambda s: (s.q_heads, s.hidden), zeros, silent=0.0)
MIX_BIAS = Parameter("b_m", lambda s: (s.q_heads,), filled(-4.0), fresh=-2.0, silent=-1e4, shaken=0.0)
# The mixer that `insert` adds and `replace` puts in attention's place.
CONV = Parameter("conv", lambda s: (s.channels, TAPS), identity_taps, scratch=half_taps)
OUT_NORM = Parameter("out_norm", lambda s: (s.d_v,), ones)
OUT_GATE = Parameter("w_g", lambda s: (s.q_heads * s.d_v, s.hidden), normal, scratch=normal, silent=0.0)
CLOSED_GATE = replace(OUT_GATE, converted=zeros)  # of `replace`: the layer without its attention, the safe start
# Of `insert` alone.
NORM = Parameter("norm", lambda s: (s.hidden,), ones)
PROJECTION = Parameter("w_qkv", lambda s: (s.channels, s.hidden), normal, slow=True)
OUTPUT = Parameter("w_o", lambda s: (s.hidden, s.q_heads * s.d_v), zeros, silent=0.0)
# Of an MLP whose down-projection sleeps write (consolidation `in_place`).
TARGET_TAPS = Parameter("target_taps", lambda s: (s.hidden, TAPS_AROUND), zeros, silent=0.0)
TARGET = Parameter("w_target", lambda s: (s.hidden, s.hidden), small_diagonal, slow=True)

# Of an MLP that is added behind a block, whose maps sleeps learn (consolidation `gradient`, weights `prime`).
PRIME_NORM = Parameter("prime_norm", lambda s: (s.hidden,), ones)
PRIME = {
    "prime_gate": Parameter("prime_gate", lambda s: (s.hidden, s.hidden), normal, slow=True),
    "prime_up": Parameter("prime_up", lambda s: (s.hidden, s.hidden), normal, slow=True),
    "prime_down": Parameter("prime_down", lambda s: (s.hidden, s.hidden), zeros, silent=0.0),
}

# Of a block whose linear maps have a state beside them that sleeps learn (consolidation `gradient`), by the map: what
# turns its inputs into those of the state, a matrix [rank, in], or their scale [in].
LEARNED = ("down", "up0", "up1", "up2", "up3", "query", *PRIME)
INTO = "into_"

_ALL = (QUERY_MAP, KEY_MAP, MIX, MIX_BIAS, CONV, OUT_NORM, OUT_GATE, NORM, PROJECTION, OUTPUT, TARGET_TAPS, TARGET)
OF_LAYERS = {parameter.name: parameter for parameter in (*_ALL, PRIME_NORM, *PRIME.values())}


def into_learned(part: str, inputs: int, rank: int) -> Parameter:
    """Of the map `part` with so many inputs: rank 0 scales them."""
    if rank:
        return Parameter(INTO + part, lambda _: (rank, inputs), normal, silent=0.0)
    return Parameter(INTO + part, lambda _: (inputs,), ones, silent=0.0)


OF_LAYERS |= {INTO + part: into_learned(part, 0, 1) for part in LEARNED}


@dataclass(frozen=True)
class GateParameters:
    """Those of one gate: W [rows, hidden], b [rows], and A [rows], which only a decay has; rows are memories or, for a
    wide gate, memories times d_k.
    """

    weight: Parameter
    bias: Parameter
    rate: Parameter


def of_gate(gate: Gate, decay: str = "head") -> GateParameters:
    """The parameters of a gate that has some, of a recipe whose decays are per `decay`. A decay's bias is that of
    half-lives, which the window decides. Codes begin equal, so that what one finds is what another wrote.
    """

    def rows(s: Sizes) -> int:
        return s.heads * s.d_k if gate.wide(decay) else s.heads

    return GateParameters(
        Parameter(gate.weight, lambda s: (rows(s), s.hidden), twins if gate.activation == "code" else zeros),
        Parameter(gate.bias, lambda s: (rows(s),), filled(gate.start)),
        Parameter(gate.rate, lambda s: (rows(s),), zeros),
    )


def of_learned(name: str, learned: LearnedTensor) -> Parameter:
    """What a rule's layer learns beside gates: matrices of all memories, one below the other."""

    def stacked(s: Sizes) -> Shape:
        heads, rows, columns = learned.shape(s.heads, s.d_k, s.d_v)
        return heads * rows, columns

    return Parameter(name, stacked, learned.initial)


STRENGTHS, DECAYS = of_gate(STRENGTH), of_gate(DECAY)


def parameter_in(key: str) -> str | None:
    """The name of the parameter of a memory's layer that a key "blocks.I.memory.NAME" is of; None for another key."""
    found = KEY.fullmatch(key)
    return found and found[2]


def key_of(block: int, parameter: Parameter) -> str:
    """Its key in a block."""
    return block_key(block, parameter.port)
