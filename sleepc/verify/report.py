"""What a verification found, as numbers: nine invariants, and perplexity by distance with what is made of it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

INVARIANTS = {
    1: "chunking does not matter",
    2: "exact inside the window",
    3: "N = 1 is the plain hybrid",
    4: "sleep equals its definition",
    5: "padding writes nothing",
    6: "constant memory",
    7: "save, load, continue",
    8: "rows are independent",
    9: "any length works",
}


@dataclass(frozen=True)
class Check:
    """One measurement: `value` is the largest error found, `tolerance` what is allowed; None: not measured."""

    name: str
    invariant: int
    ok: bool
    value: float | None
    tolerance: float | None
    detail: str


@dataclass(frozen=True)
class PerplexityRow:
    """exp of the mean surprise at the tokens from..to-1 of one stream, `read` of them; None if a model cannot read
    that far.
    """

    tokens_from: int
    tokens_to: int
    full: float | None
    sliding: float
    converted: float
    read: int

    @property
    def ratio(self) -> float | None:
        """How many times full attention's perplexity the converted program has; inf if that is not a number."""
        if self.full is None or not math.isfinite(self.full):
            return None
        return self.converted / self.full if math.isfinite(self.converted) else math.inf


Verdict = Literal["holds", "worse", "expected", "accepted", "ruined", "not measured"]


@dataclass(frozen=True)
class Beyond:
    """What lies beyond the window, in a sentence: the largest `ratio` of perplexities and the range `row` that has it,
    and if that is too much, the likely `cause` and a `fix`. "expected": as bad as "ruined", by options or a training
    that make another model; "accepted": the user said that it is.
    """

    verdict: Verdict
    text: str
    ratio: float | None = None
    row: PerplexityRow | None = None
    cause: str = ""
    fix: str = ""

    @property
    def ok(self) -> bool:
        """May it be saved?"""
        return self.verdict != "ruined"

    @property
    def bad(self) -> bool:
        """Is there something to be warned of?"""
        return bool(self.cause)

    def sentence(self) -> str:
        """All of it."""
        return f"{self.text}. Likely cause: {self.cause}. Try: {self.fix}." if self.bad else f"{self.text}."

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        row = self.row
        found = {name: None if row is None else getattr(row, name) for name in ("tokens_from", "tokens_to", "full")}
        found["converted"] = None if row is None else row.converted
        words = {"verdict": self.verdict, "ok": self.ok, "text": self.text, "cause": self.cause, "fix": self.fix}
        return {**words, "ratio": self.ratio, **found}


@dataclass
class VerifyReport:
    """All of it. `ok` is False if any check failed, or the program is useless beyond its window."""

    checks: list[Check] = field(default_factory=list)
    perplexity: list[PerplexityRow] = field(default_factory=list)
    beyond: Beyond | None = None
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Did every check pass, and what is beyond the window?"""
        return all(check.ok for check in self.checks) and (self.beyond is None or self.beyond.ok)

    @property
    def failed(self) -> set[int]:
        """The invariants that do not hold."""
        return {check.invariant for check in self.checks if not check.ok}

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        checks, rows = [asdict(check) for check in self.checks], [asdict(row) for row in self.perplexity]
        beyond = None if self.beyond is None else self.beyond.to_json()
        return {"ok": self.ok, "seconds": self.seconds, "checks": checks, "perplexity": rows, "beyond": beyond}


@dataclass(frozen=True)
class Tolerance:
    """`scaled`: of the scale of what is compared (its largest value, at least 1); `absolute`: logits in the window."""

    scaled: float
    absolute: float


TOLERANCES = {
    # Models take softmax and norms in float32 whatever their dtype is; the oracle does not.
    torch.float64: Tolerance(1e-9, 1e-4),
    torch.float32: Tolerance(1e-4, 1e-3),
    # A rounding of 2^-11 (2^-8) in every sum of every block, while both sides sum in different orders.
    torch.float16: Tolerance(2e-2, 2e-1),
    torch.bfloat16: Tolerance(8e-2, 8e-1),
}
