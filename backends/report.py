"""What the check of an export has found: a row for each check, perplexity and recall before and after."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, TypedDict

TEXT = "text"  # the check of what rounding costs


@dataclass(frozen=True)
class Figure:
    """One figure of one check. It holds if `value` is at most `bound`, or for an agreement at least."""

    check: str
    figure: str
    value: float
    bound: float
    detail: str = ""
    least: bool = False

    @property
    def ok(self) -> bool:
        """Does it hold? NaN does not."""
        return self.value >= self.bound if self.least else self.value <= self.bound

    def words(self) -> str:
        """What is wrong with it, for people."""
        return (
            f"{self.check}: {self.figure} {self.value:.3g}, {'at least' if self.least else 'at most'} {self.bound:.3g}"
        )


class RecallAt(TypedDict):
    """How many nats less a token of a passage surprises when it is read again after so many `tokens`: with the program,
    and with the files.
    """

    tokens: int
    before: float
    after: float


@dataclass
class Report:
    """All rows. `perplexity` has tokens, and the perplexity of the program and of the files over them; `recall` is of
    passages of the same text.
    """

    rows: list[Figure] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    perplexity: dict[str, float] = field(default_factory=dict)
    recall: list[RecallAt] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Does every row hold?"""
        return all(row.ok for row in self.rows)

    @property
    def only_rounding(self) -> bool:
        """Are the graphs right, and is it what rounding weights costs that is too much?"""
        return all(row.ok for row in self.rows if row.check != TEXT)

    def failures(self) -> str:
        """What failed, with its figures; the first few."""
        failed = [row for row in self.rows if not row.ok]
        more = f"; and {len(failed) - 4} more" if len(failed) > 4 else ""
        found = "; ".join(row.words() for row in failed[:4])
        return f"the exported files do not compute what the program does: {found}{more}"

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "ok": self.ok,
            "checks": [asdict(row) | {"ok": row.ok} for row in self.rows],
            "perplexity": self.perplexity,
            "recall": self.recall,
            "seconds": self.seconds,
            **self.facts,
        }
