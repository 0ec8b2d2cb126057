"""How memory rules are written as ONNX: a table that the files of memories/ fill."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from sleepc.backends.onnx.emit import Emitter
from sleepc.errors import UsageError
from sleepc.memory.rule import Rule

States = Sequence[ir.Value]


@dataclass(frozen=True)
class Tokens:
    """What tokens write, heads first, by name: k [B, H, T, dk], v [B, H, T, dv], gates [B, H, T], those of
    `per_channel` [B, H, T, dk]; and the sizes. A gate that is not there has its value at padding. `learned`: what the
    layer has learned [H, rows, columns], which step and read get after the states.
    """

    values: Mapping[str, ir.Value]
    per_channel: frozenset[str]
    rows: int | str
    heads: int
    count: int | str
    dk: int
    dv: int
    learned: tuple[ir.Value, ...] = ()

    def without(self, names: set[str]) -> Tokens:
        """The same, but for these gates."""
        left = {name: value for name, value in self.values.items() if name not in names}
        return replace(self, values=left, per_channel=self.per_channel - names)


Query = tuple[ir.Value, int]  # [B, Hq, T, dk], Hq
Run = Callable[[Emitter, Rule, "Query | None", Tokens, States, float], tuple["ir.Value | None", list[ir.Value]]]


@dataclass(frozen=True)
class Spelling:
    """A rule in ONNX.

    step    (rule, values of one token [B, H, ..] by name, states.., sizes) -> states'; of a rule that writes by window
            values of all tokens [B, H, T, ..]
    read    (states.., q [B, H, n, dk]) -> [B, H, n, dv]
    kernel  all tokens by an operator of ONNX Runtime's, if there is one: (reads or None, states')
    """

    step: Callable[[Emitter, Rule, Mapping[str, ir.Value], States, Tokens], list[ir.Value]]
    read: Callable[[Emitter, States, ir.Value], ir.Value]
    kernel: Run | None = None


SPELLINGS: dict[str, Spelling] = {}


def spelling_of(rule: str) -> Spelling:
    """Raises UsageError for a rule that has none."""
    if rule not in SPELLINGS:
        known = ", ".join(SPELLINGS)
        raise UsageError(f"the ONNX backend does not know the memory rule {rule!r}", fix=f"It has: {known}.")
    return SPELLINGS[rule]


def read_matrix(e: Emitter, states: States, q: ir.Value) -> ir.Value:
    """S^T q."""
    return e("MatMul", q, states[0])
