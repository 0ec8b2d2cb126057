"""The registry of memory rules: what a memory holds, how a token changes it, how it is read.

A rule is one `Rule` value. Everything that runs memories (`delta_rule`, `delta_rule_read`,
`replay`, sessions) asks the registry and nothing else, so a rule with more state (momentum, slots)
is added by one call of `register`.

    register(Rule(name="mine", corrects=True, decays=True, states=..., step=..., read=...))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sleepc.errors import UsageError
from sleepc.ops.chunk import delta_chunk, delta_step

States = Sequence[Tensor]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Rule:
    """A memory update, over H memories (one per KV head) of B rows.

    name      how graphs and options call it
    corrects  a write subtracts what the memory already returns for the key (else replay has no use)
    decays    g has a meaning; otherwise the rule is given zeros
    states    (H, dk, dv) -> shape of every state tensor without its batch dimension, in order
    step      (k [B,H,dk], v [B,H,dv], g [B,H] or [B,H,dk], beta [B,H], state) -> state':
              one token, the meaning of the rule
    read      (state, q [B,H,n,dk]) -> [B,H,n,dv], without the scale
    chunk     (q [B,H,n,C,dk] or None, k [B,H,C,dk], v, g, beta, state) -> (reads or None, state'):
              C tokens at once, equal to C times step and read; where it is None, that loop runs
    affine    a pass without decay is S -> M S + B on one matrix S [B,H,dk,dv], M being the pass
              over v = 0: many passes cost as much as three

    k = 0, beta = 0, g = 0 must leave every state as it is: padding is written that way.
    """

    name: str
    corrects: bool
    decays: bool
    states: Callable[[int, int, int], dict[str, Shape]]
    step: Callable[[Tensor, Tensor, Tensor, Tensor, States], list[Tensor]]
    read: Callable[[States, Tensor], Tensor]
    chunk: (
        Callable[
            [Tensor | None, Tensor, Tensor, Tensor, Tensor, States],
            tuple[Tensor | None, list[Tensor]],
        ]
        | None
    ) = None
    affine: bool = False

    def advance(
        self, q: Tensor | None, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: States
    ) -> tuple[Tensor | None, list[Tensor]]:
        """`chunk`, or a loop of `step` for one token or where there is no chunk. T >= 1."""
        if self.chunk is not None and k.shape[2] > 1:
            return self.chunk(q, k, v, g, beta, state)
        reads = []
        for t in range(k.shape[2]):
            state = self.step(k[:, :, t], v[:, :, t], g[:, :, t], beta[:, :, t], state)
            if q is not None:
                reads.append(self.read(state, q[:, :, :, t]))
        return (torch.stack(reads, 3) if q is not None else None), list(state)


RULES: dict[str, Rule] = {}


def register(rule: Rule) -> Rule:
    """Add a rule; its name must be free (UsageError otherwise)."""
    if rule.name in RULES:
        raise UsageError(f"there is a rule named {rule.name!r} already", fix="choose another name")
    RULES[rule.name] = rule
    return rule


def find(name: str) -> Rule:
    """The rule of that name; UsageError with the known names otherwise."""
    if name not in RULES:
        raise UsageError(f"no rule is named {name!r}", fix="known rules: " + ", ".join(RULES))
    return RULES[name]


def _matrix(heads: int, dk: int, dv: int) -> dict[str, Shape]:
    return {"S": (heads, dk, dv)}


def _read(state: States, q: Tensor) -> Tensor:
    return q @ state[0]


def _step(k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: States, *, corrects: bool) -> list[Tensor]:
    return [delta_step(k, v, g, beta, state[0], corrects=corrects)]


def _chunk(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    state: States,
    *,
    corrects: bool,
) -> tuple[Tensor | None, list[Tensor]]:
    out, new = delta_chunk(q, k, v, g, beta, state[0], corrects=corrects)
    return out, [new]


def _delta_family(name: str, *, corrects: bool, decays: bool) -> Rule:
    return Rule(
        name=name,
        corrects=corrects,
        decays=decays,
        states=_matrix,
        step=partial(_step, corrects=corrects),
        read=_read,
        chunk=partial(_chunk, corrects=corrects),
        affine=True,
    )


register(_delta_family("linear", corrects=False, decays=False))
register(_delta_family("gated", corrects=False, decays=True))
register(_delta_family("delta", corrects=True, decays=False))
register(_delta_family("gated_delta", corrects=True, decays=True))
