"""How a kernel is compiled: its constants, warps and stages, and what its arguments are. Imports no torch.

What is chosen here is what runs, and what `compiled.py` compiles ahead of time: docs/performance.md has the registers
and shared memory of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SHORTEST, LONGEST, WIDEST = 16, 64, 256
"""The fewest and most tokens of a chunk, and the largest head: what the kernels are written and checked for."""
GATES = ("g", "beta")
STATES = ("state", "end")
NUMBERS: Mapping[str, str] = {
    **dict.fromkeys(("tokens", "shared_queries", "shared_keys", "shared_memories"), "i32"),
    "scale": "fp32",
}


@dataclass(frozen=True)
class Problem:
    """What a kernel is compiled for: head sizes, tokens of a chunk, the type of what is multiplied (of Triton's names,
    bf16, fp16 or fp32) and what the rule does. `exact` is how float32 is multiplied.
    """

    dk: int
    dv: int
    chunk: int
    dot: str
    corrects: bool
    decays: bool
    exact: str


@dataclass(frozen=True)
class Compilation:
    """The constants of a kernel (DOT by its name), and how many warps and stages it has."""

    constants: Mapping[str, Any]
    warps: int
    stages: int


def power(size: int) -> int:
    """The next power of two, of at least 16, the smallest side of a product."""
    return max(16, 1 << (size - 1).bit_length())


def chunk_of(tokens: int, hint: int) -> int:
    """Tokens of a chunk, of which `hint` are asked for."""
    return max(SHORTEST, min(LONGEST, power(min(tokens, hint))))


WAYS: Mapping[str, tuple[int, int, int]] = {"prepare": (64, 8, 1), "carry": (32, 4, 1), "read": (32, 4, 1)}
"""Columns of the values that a program has, warps and stages: with these nothing is spilled."""


def choose(kernel: str, it: Problem) -> Compilation:
    """How `kernel`, by its name, is compiled for a problem."""
    width, warps, stages = WAYS[kernel]
    constants = {
        **{"DK": it.dk, "DV": it.dv, "C": it.chunk, "BK": power(it.dk), "BV": min(power(it.dv), width)},
        **{"DECAYS": it.decays, "DOT": it.dot, "EXACT": it.exact},
    }
    if kernel == "carry":
        constants["CORRECTS"] = it.corrects
    return Compilation(constants, warps, stages)


def types(names: tuple[str, ...], it: Problem) -> dict[str, str]:
    """The type of every argument of a kernel, as Triton writes it."""
    return {name: _type(name, it) for name in names}


def _type(name: str, it: Problem) -> str:
    if name in NUMBERS:
        return NUMBERS[name]
    if name.isupper():
        return "constexpr"
    return "*fp32" if name in GATES or name in STATES else f"*{it.dot}"
