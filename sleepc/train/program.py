"""What training needs of a converted program (sleepc.api.Program is one)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from sleepc.hf.tokenizer import Tokenizer
from sleepc.ir.program import ProgramGraphs
from sleepc.manifest import Source
from sleepc.recipe import Recipe


class Trainable(Protocol):
    """A converted model; training changes `graphs` and `report`. `canonical` is the original, if it was captured."""

    graphs: ProgramGraphs
    recipe: Recipe
    source: Source
    report: dict[str, Any]
    canonical: ProgramGraphs | None
    path: Path | None
    identity: str

    def captured(self, progress: Callable[[str, float | None], None]) -> ProgramGraphs:
        """The original at level CANONICAL."""

    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; UsageError if it has none."""
