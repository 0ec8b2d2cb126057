"""What is compared: every rule and every consolidation that is registered, and the best of both together."""

from __future__ import annotations

from typing import Any

from sleepc.memory.registry import RULES
from sleepc.passes.consolidation.registry import CONSOLIDATIONS
from sleepc.recipe import Recipe

Options = dict[str, Any]
FEATURES = ("elu", "dpfp2")
SEVERAL = 2  # passes


def cells(*, grid: bool = False) -> dict[str, Options]:
    """{name: what a recipe says of memories and sleeps}. Each rule with the default consolidation and each
    consolidation with the default rule, features, and more passes; with `grid` every rule with every consolidation.
    """
    plain = Recipe()
    found: dict[str, Options] = {rule: {"rule": rule} for rule in RULES}
    found |= {f"{plain.rule}, {name}": {"features": name} for name in FEATURES}
    found[f"{plain.rule}, {SEVERAL} passes"] = {"passes": SEVERAL}
    rules = tuple(RULES) if grid else (plain.rule,)
    others = [name for name in CONSOLIDATIONS if name != plain.consolidation]
    for rule in rules:
        found |= {f"{rule}, {name}": _asleep(rule, name) for name in others}
    return found


def _asleep(rule: str, consolidation: str) -> Options:
    """With two passes where passes are what it does: one of them is the window as it was read."""
    changing = CONSOLIDATIONS[consolidation].changes(Recipe())
    return {"rule": rule, "consolidation": consolidation, "passes": 1 if changing else SEVERAL}
