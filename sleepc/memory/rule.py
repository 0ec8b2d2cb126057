"""What a memory rule is made of: tensors of state, gates, and functions of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Generator, Tensor

Shape = tuple[int, ...]
States = Sequence[Tensor]
Tokens = Mapping[str, Tensor]
"""What tokens write, by name: "k" [B,H,..,dk], "v" [B,H,..,dv], and every gate of the rule [B,H,..], a wide one
[B,H,..,dk]. Heads are those of the memory."""

Activation = Literal["sigmoid", "softplus", "decay", "one", "code"]


@dataclass(frozen=True)
class State:
    """A tensor of a memory: (H, dk, dv) -> its shape without the batch dimension, and its value at first."""

    shape: Callable[[int, int, int], Shape]
    initial: float = 0.0


@dataclass(frozen=True)
class LearnedTensor:
    """A tensor of a layer that no token writes and training changes: (H, dk, dv) -> its shape [H, rows, columns], and
    its value at first, of all heads one below the other [H rows, columns].
    """

    shape: Callable[[int, int, int], tuple[int, int, int]]
    initial: Callable[[Shape, Generator], Tensor]


@dataclass(frozen=True)
class Gate:
    """A number for each token and memory, or as many as a key has, made of the layer's input x.

    activation  sigmoid: sigmoid(W x + b).  softplus: log(1 + e^(W x + b)).  decay: -exp(A) softplus(W x + b), log
                space, <= 0; per channel of the key if the recipe says so.  one: 1 for every token; it has no
                parameters.  code: W x of unit length, as many numbers as a key has.
    weight, bias, rate   the names of W, b and A among the layer's parameters
    start       b at conversion (a decay's is made from the window: half-lives)
    at_padding  with this value, and k = 0, every state stays unchanged
    again       does it act in the passes of a replay after the first? If not, it has its value at padding there.
    of_keys     may a decay be per channel of the key? Not if it is that of a tensor without such channels.
    """

    activation: Activation
    weight: str = ""
    bias: str = ""
    rate: str = ""
    start: float = 0.0
    at_padding: float = 0.0
    again: bool = True
    of_keys: bool = True

    def parameters(self) -> tuple[str, ...]:
        """The names of its parameters."""
        return tuple(name for name in (self.weight, self.bias, self.rate) if name)

    def wide(self, decay: str) -> bool:
        """Is it d_k numbers for each token and memory, of a recipe whose decays are per `decay`?"""
        return self.activation == "code" or (self.activation == "decay" and self.of_keys and decay == "channel")

    @property
    def of_time(self) -> bool:
        """Does it act once for every token that was read, as a decay does, whatever is written?"""
        return self.activation == "decay" or not self.again


STRENGTH = Gate("sigmoid", weight="w_b", bias="b_b")
DECAY = Gate("decay", weight="w_a", bias="dt", rate="log_a", again=False)


@dataclass(frozen=True)
class Rule:
    """A memory update, over H memories (one per KV head) of B rows.

    name      how graphs and options call it
    corrects  a write subtracts what the memory already returns for the key (else replay has no use)
    states    the tensors of a memory by name, in order
    gates     by name, in order
    step      (tokens without their dimension T, states) -> states': one token
    read      (states, q [B,H,n,dk]) -> [B,H,n,dv], without the scale
    naive     the same as `step`, written down once more from the formula, for any leading dimensions (none, too): it
              is what programs are verified against, so it calls nothing that `step` calls
    naive_read  the same as `read`: (states [..,dk,dv] .., q [..,n,dk]) -> [..,n,dv]
    chunk     (q [B,H,n,C,dk] or None, tokens [B,H,C,..], states) -> (reads or None, states'): C tokens at once, equal
              to C times step and read; if it is None, that loop runs
    square    keys and values have one width
    learned   what a layer has learned, by name, in order: all these functions get it after the states, [H,..] or, in
              the references, [..]; they return states alone
    by_window  a write takes all tokens of a window at once, in any order: `step` and `naive` get them with their
              dimension T, [B,H,T,..]. Such a memory is written in sleeps only
    affine    a pass of only those gates that act again is S -> M S + B on the only tensor S [B,H,dk,dv], M being the
              pass over v = 0: many passes cost as much as three

    Tokens with k = 0 and gates at their values at padding leave every state unchanged: padding is written that way.
    """

    name: str
    corrects: bool
    states: Mapping[str, State]
    gates: Mapping[str, Gate]
    step: Callable[[Tokens, States], list[Tensor]]
    read: Callable[[States, Tensor], Tensor]
    naive: Callable[[Tokens, States], list[Tensor]]
    naive_read: Callable[[States, Tensor], Tensor]
    chunk: Callable[[Tensor | None, Tokens, States], tuple[Tensor | None, list[Tensor]]] | None = None
    affine: bool = False
    square: bool = False
    learned: Mapping[str, LearnedTensor] = field(default_factory=dict)
    by_window: bool = False

    @property
    def decays(self) -> bool:
        """Has it a gate that is a decay?"""
        return any(gate.activation == "decay" for gate in self.gates.values())

    @property
    def decays_by_channel(self) -> bool:
        """Has it a decay that may be per channel of the key?"""
        return any(gate.wide("channel") for gate in self.gates.values() if gate.activation == "decay")

    def split(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The states, and what was learned, which comes after them."""
        count = len(self.states)
        return list(tensors[:count]), list(tensors[count:])

    def shapes(self, heads: int, dk: int, dv: int) -> dict[str, Shape]:
        """The shape of every state tensor without its batch dimension, in order."""
        return {name: state.shape(heads, dk, dv) for name, state in self.states.items()}


def matrix(heads: int, dk: int, dv: int) -> Shape:
    """A matrix from keys to values for each head."""
    return heads, dk, dv


def token_by_token(rule: Rule, q: Tensor | None, tokens: Tokens, state: States) -> tuple[Tensor | None, list[Tensor]]:
    """`step` and `read` for each of T >= 1 tokens: what a rule's `chunk` equals, with its arguments and results."""
    (new, learned), reads = rule.split(state), []
    for t in range(tokens["k"].shape[2]):
        new = rule.step({name: x[:, :, t] for name, x in tokens.items()}, [*new, *learned])
        if q is not None:
            reads.append(rule.read([*new, *learned], q[:, :, :, t]))
    return (torch.stack(reads, 3) if q is not None else None), new


def over_state(gate: Tensor, k: Tensor) -> Tensor:
    """A gate [..] or, per channel, [..,dk] of one token with key k [..,dk] as a factor of S [..,dk,dv]."""
    return gate[..., None] if gate.dim() == k.dim() else gate[..., None, None]
