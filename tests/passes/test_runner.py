"""What the runner holds passes to: what they need, that they count what they change, and their effect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import pytest
import torch

from sleepc.errors import SleepcError
from sleepc.ir.diagnose import InvalidProgram
from sleepc.ir.fit import check_fit
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.weights import HeldTensor
from sleepc.passes.base import Effect, Pass, Stage
from sleepc.passes.facts import SLEEPS, Fact
from sleepc.passes.lib.emit import Emit
from sleepc.passes.runner import fingerprint, run_stages
from tests.passes.cases import FOLDER, read

TOKENS = (3, 1, 4)


def program() -> ProgramGraphs:
    """One block, with weights that show."""
    found = read(FOLDER / "one_block.txt").program()
    generator = torch.Generator().manual_seed(0)
    for key, param in found.params.items():
        found.params[key] = HeldTensor(torch.randn(param.shape, generator=generator))
    return found


@dataclass(frozen=True)
class Changes(Pass):
    """A pass that does what a test wants, and says that it was as much."""

    change: Callable[[ProgramGraphs], object]
    count: int
    name: ClassVar[str] = "changes"
    effect: ClassVar[Effect] = "ROUNDING"

    def run(self, program: ProgramGraphs) -> int:
        """What it was told to say."""
        self.change(program)
        return self.count


class Exact(Changes):
    effect: ClassVar[Effect] = "EXACT"


class Replaces(Changes):
    effect: ClassVar[Effect] = "REPLACES"


class Needs(Changes):
    requires: ClassVar[tuple[Fact, ...]] = (SLEEPS,)


def run(each: Pass, tokens: tuple[int, ...] | None = None) -> ProgramGraphs:
    return run_stages(program(), (Stage("one", "CANONICAL", (each,)),), tokens=tokens)


VALUES = {"level": "CONVERTED", "dtype": torch.float64, "upto": 5, "beyond": 5, "loop": None, "clock": None}


@pytest.mark.parametrize("name", [f.name for f in fields(ProgramGraphs) if f.name != "history"])
def test_every_field_is_watched(name: str) -> None:
    before = program()
    after = before.clone()
    old = getattr(before, name)
    new: Any = VALUES.get(name) or (old + 1 if isinstance(old, int) else None)
    if name in ("embed", "head", "clock"):
        new = before.classes["block.0"].wake
    elif new is None:
        new = type(old)() if old else ("something",)
    setattr(after, name, new)
    assert fingerprint(after) != fingerprint(before)
    assert fingerprint(before.clone()) == fingerprint(before)


@pytest.mark.parametrize(("change", "count"), [(lambda p: setattr(p, "max_positions", 7), 0), (lambda p: None, 1)])
def test_a_pass_counts_what_it_changes(change: Callable[[ProgramGraphs], object], count: int) -> None:
    with pytest.raises(SleepcError, match="the pass says"):
        run(Changes(change, count))


def test_a_pass_gets_what_it_needs_or_does_not_run() -> None:
    with pytest.raises(SleepcError, match="changes needs a program that sleeps"):
        run(Needs(lambda p: pytest.fail("it ran"), 0))


def test_no_graph_is_left_that_sleeps_are_made_with() -> None:
    bound = read(FOLDER / "add-sleep" / "kept_pairs.txt").prepared()
    with pytest.raises(InvalidProgram, match="V32"):
        check_fit(bound)


def scaled(factor: float) -> Callable[[ProgramGraphs], object]:
    """Logits times a factor."""

    def change(program: ProgramGraphs) -> None:
        logits = program.head.results()["logits"]
        program.head.set_returns({"logits": logits})
        node = Emit(program.head, "").mul(logits, factor)
        node.meta["type"] = logits.meta["type"]
        program.head.set_returns({"logits": node})

    return change


def test_passes_are_held_to_their_effect() -> None:
    run(Exact(scaled(1.0), 1), TOKENS)
    run(Changes(scaled(1.0 + 1e-6), 1), TOKENS)
    run(Replaces(scaled(2.0), 1), TOKENS)
    for each in (Exact(scaled(1.0 + 1e-6), 1), Changes(scaled(1.0 + 1e-4), 1), Changes(scaled(float("nan")), 1)):
        with pytest.raises(SleepcError, match="the effect of changes"):
            run(each, TOKENS)
