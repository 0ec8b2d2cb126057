"""Refuse what no program can hold: operators that the tables do not list, and shapes that depend on values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from sleepc.errors import Refusal
from sleepc.ir.levels import is_allowed
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.base import Effect, Pass
from sleepc.passes.facts import FLAT, FUNCTIONAL, MASKS_KNOWN, Fact
from sleepc.passes.lib.region import is_tensor_like
from sleepc.passes.lib.values import needed_for


@dataclass(frozen=True)
class CheckOperators(Pass):
    """Look at the flat graph once attention is raised and masks are gone. Sizes are not looked at: parts of the program
    compute their own.

    Raises Refusal(OPERATOR), with the operator and its place in the model.
    """

    name: ClassVar[str] = "check-operators"
    effect: ClassVar[Effect] = "EXACT"
    requires: ClassVar[tuple[Fact, ...]] = (FLAT, FUNCTIONAL, MASKS_KNOWN)

    def run(self, program: ProgramGraphs) -> int:
        """0: nothing changes."""
        for node in needed_for(program.embed.results()["logits"]):
            if node.op == "call_function" and is_tensor_like(node):
                _check(node)
        return 0


def _check(node: fx.Node) -> None:
    where = str(node.meta.get("source", ""))
    if free_unbacked_symbols(node.meta["val"]):
        raise Refusal(
            "OPERATOR",
            f"the shape of what {node.target} makes depends on the values of tokens or weights",
            where=where,
            fix="sleepc converts models whose shapes follow from batch and length: not those that gather the tokens "
            "routed to an expert or a language.",
        )
    if not is_allowed(node.target, "CANONICAL"):
        raise Refusal(
            "OPERATOR",
            f"the model uses {node.target}, which sleepc does not know",
            where=where,
            fix="Please report the model.",
        )
