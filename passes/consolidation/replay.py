"""Consolidation `replay`: the memory's own update, again over the window's record; nothing is computed again."""

from __future__ import annotations

from typing import ClassVar

from sleepc.errors import UsageError
from sleepc.memory.registry import find as find_rule
from sleepc.memory.registry import named
from sleepc.passes.consolidation.contract import Consolidation, Plans, StreamSleep
from sleepc.passes.plan import Asleep
from sleepc.recipe import LayerPlan, Recipe


class Replay(Consolidation):
    """N passes of the rule over the window, of which wake was the first if tokens are written online."""

    name: ClassVar[str] = "replay"

    def check_memory(self, recipe: Recipe, plan: LayerPlan, layer: str) -> None:
        """More than one pass makes sense only for rules that correct."""
        if recipe.passes > 1 and not find_rule(plan.rule).corrects:
            corrects = named(corrects=True)
            raise UsageError(
                f"rule {plan.rule} does not correct what it wrote: replaying a window {recipe.passes} times only "
                "multiplies what it adds",
                where=f"{layer}--passes",
                fix=f"Use --passes 1, a rule with a correction ({corrects}), or --consolidation recurrent.",
            )

    def asleep(self, recipe: Recipe, plans: Plans, i: int) -> Asleep:
        """A record if a sleep writes."""
        return Asleep(recorded=plans[i].write == "sleep" or recipe.passes > 1, replays=recipe.passes)

    def remember(self, sleep: StreamSleep) -> None:
        """The rule over what was written, token by token."""
        for i, plan in enumerate(sleep.plans):
            sleep.replay(i, 1 if plan.write == "online" else 0, sleep.recipe.passes)
