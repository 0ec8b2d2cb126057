"""How a kernel is compiled: its constants, warps and stages, and what its arguments are. Imports no torch.

What is chosen here is what runs, and what `compiled.py` compiles ahead of time: docs/performance.md has the registers
and shared memory of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import triton.language as tl

SHORTEST, LONGEST, WIDEST = 16, 64, 256
"""The fewest and most tokens of a chunk, and the largest head: what the kernels are written and checked for."""
SINGLE = (
    *("g", "beta", "total", "scores", "made", "state", "end"),
    *("d_end", "d_state", "d_g", "d_beta", "d_made", "d_total"),
    *("weight", "tail", "after"),
    *("strengths", "decays", "rate", "answer", "share"),
)
"""Arguments that are float32 whatever is multiplied."""
COUNTS = (
    *("tokens", "heads", "count", "firsts", "passes"),
    *("shared_queries", "shared_keys", "shared_memories", "shared_rows"),
)
KINDS: Mapping[str, str] = {
    **dict.fromkeys(COUNTS, "i32"),
    **{"scale": "fp32", "epsilon": "fp32", "lengths": "*i64", "real": "*i1", "live": "*i1"},
}
"""Arguments that have one type whatever is multiplied, as Triton writes it."""
STAGES = 1
"""Loads that are under way at once in a loop: more take more registers, and what they bring needs a GPU to be seen."""
TYPES = {"fp32": tl.float32, "bf16": tl.bfloat16, "fp16": tl.float16}
"""What Triton calls the types that are multiplied."""
WAYS: Mapping[str, tuple[int, int]] = {
    **{"solve": (0, 8), "prepare": (64, 8), "carry": (32, 4), "read": (64, 8)},
    **{"sums": (0, 4), "scores": (0, 4), "of_scores": (0, 4), "of_sums": (0, 4)},
    **{"masked_l2norm": (0, 4), "gates": (64, 4), "mixed": (64, 4), "gated_norm": (0, 4)},
    **{"l2norm": (0, 4), "convolve": (256, 4), "step": (32, 4), "recall": (32, 4), "replay": (16, 4)},
    **{"spread": (32, 8), "carry_back": (16, 4), "of_queries": (64, 8)},
    **{"of_states": (32, 8), "unsolve": (32, 8), "of_rights": (32, 8)},
}
"""Columns of the values that a program computes at once, and its warps: with these nothing is spilled."""
WIDE_WAYS: Mapping[str, tuple[int, int]] = {"read": (32, 8)}
"""The same where float32 is multiplied by three products of TF32 and heads are larger than 64, for what WAYS spill."""
IN_ONE = (
    "l2norm",
    "masked_l2norm",
    "gated_norm",
    "solve",
    "prepare",
    "sums",
    "scores",
    "of_scores",
    "of_sums",
    "of_queries",
    "of_states",
    "of_rights",
)
"""Kernels whose programs have all columns, one after the other, or none."""


@dataclass(frozen=True)
class Problem:
    """What a kernel is compiled for: head sizes, tokens of a chunk, the type of what is multiplied (of Triton's names,
    bf16, fp16 or fp32), what the rule does, and whose its decay is ("", "head" or "channel"). `exact` is how float32 is
    multiplied.
    """

    dk: int
    dv: int
    chunk: int
    dot: str
    corrects: bool
    decay: str
    exact: str


@dataclass(frozen=True)
class Compilation:
    """A kernel's constants by name, its warps, and into how many programs columns are split."""

    constants: Mapping[str, Any]
    warps: int
    columns: int

    @property
    def options(self) -> dict[str, Any]:
        """What the compiler is told in addition."""
        return {"num_warps": self.warps, "num_stages": STAGES, "enable_fp_fusion": True}


def power(size: int) -> int:
    """The next power of two, of at least 16, the smallest side of a product."""
    return max(16, 1 << (size - 1).bit_length())


def chunk_of(tokens: int, hint: int) -> int:
    """Tokens of a chunk, of which `hint` are asked for."""
    return max(SHORTEST, min(LONGEST, power(min(tokens, hint))))


def choose(kernel: str, names: Sequence[str], it: Problem) -> Compilation:
    """How `kernel`, with arguments of these names, is compiled for a problem."""
    wide = (it.dot, it.exact) == ("fp32", "tf32x3") and max(it.dk, it.dv) > 64
    width, warps = (WIDE_WAYS if wide and kernel in WIDE_WAYS else WAYS)[kernel]
    width = min(power(it.dv), width)
    constants = {
        **{"DK": it.dk, "DV": it.dv, "C": it.chunk, "BK": power(it.dk), "BV": width, "DOT": TYPES[it.dot]},
        **{"EXACT": it.exact, "DECAY": it.decay, "CORRECTS": it.corrects},
    }
    columns = 1 if kernel in IN_ONE else -(-it.dv // width)
    return Compilation({name: constants[name] for name in names if name in constants}, warps, columns)


def types(names: Sequence[str], it: Problem) -> dict[str, str]:
    """The type of every argument of a kernel, as Triton writes it."""
    return {name: _type(name, it) for name in names}


def _type(name: str, it: Problem) -> str:
    if name.isupper():
        return "constexpr"
    if name in KINDS:
        return KINDS[name]
    return "*fp32" if name in SINGLE else f"*{it.dot}"
