"""From a recipe to what every pass is told: the layers that get the same thing, and what that is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sleepc.errors import UsageError
from sleepc.memory.registry import find as find_rule
from sleepc.memory.registry import named
from sleepc.recipe import Decay, LayerPlan, Recipe, WriteTime


@dataclass(frozen=True)
class MemoryOptions:
    """How the memories of some layers are built: semantics.md, sections 3 to 5.

    `window`: tokens between sleeps. `again`: what recurrent passes do with these layers: nothing, the loop's passes
    ("loop"), or the one run over what the loop refined ("after").
    """

    rule: str
    decay: Decay
    write: WriteTime
    window: int
    passes: int
    recurrent: bool
    again: Literal["", "loop", "after"]
    seed: int

    @property
    def recorded(self) -> bool:
        """Does a sleep need the window's keys, values and gates? Not where the layer runs again from its start."""
        if self.recurrent:
            return self.write == "sleep" and self.again != "after"
        return self.write == "sleep" or self.passes > 1

    @property
    def replays(self) -> int:
        """How often a sleep applies the rule to the window's record."""
        return 1 if self.recurrent else self.passes


@dataclass(frozen=True)
class Group:
    """Layers and the options of their memories."""

    layers: tuple[int, ...]
    options: MemoryOptions


Groups = tuple[Group, ...]
Rings = tuple[tuple[int | None, tuple[int, ...]], ...]


def check_rules(recipe: Recipe) -> None:
    """Raises UsageError for unknown rules, and for rules that do not fit the recipe. Needs no model."""
    if recipe.settle and not recipe.recurs:
        raise UsageError(
            "only recurrent passes after the first end early when memories have settled, and this recipe has none",
            where=f"--settle {recipe.settle:g}",
            fix="Add --consolidation recurrent and --passes 2 or more, or leave it out.",
        )
    for override in (None, *recipe.overrides):
        name = (override and override.rule) or recipe.rule
        rule = find_rule(name)
        if recipe.consolidation == "replay" and recipe.passes > 1 and not rule.corrects:
            raise UsageError(
                f"rule {name} does not correct what it wrote: replaying a window {recipe.passes} times only "
                "multiplies what it adds",
                where="--passes",
                fix=f"Use --passes 1, a rule with a correction ({named(corrects=True)}), or --consolidation recurrent.",
            )
        if ((override and override.decay) or recipe.decay) == "channel" and not rule.decays:
            raise UsageError(
                f"rule {name} has no decay, neither per head nor per channel",
                where="--decay",
                fix=f"Use --decay head, or a rule that decays ({named(decays=True)}).",
            )


def check_settle(recipe: Recipe, plans: tuple[LayerPlan, ...]) -> None:
    """Raises UsageError if passes are to end when the loop's memories have settled, and it has none."""
    start, end = recipe.loop_range(len(plans))
    if recipe.settle and all(plan.strategy == "keep" for plan in plans[start:end]):
        raise UsageError(
            "the blocks that recurrent passes run have no memory, so there is none that could settle",
            where=f"--settle {recipe.settle:g}",
            fix="Leave it out, or choose a --loop over blocks with memories.",
        )


def memory_groups(recipe: Recipe, plans: tuple[LayerPlan, ...], strategy: str) -> Groups:
    """The layers of one strategy, those with the same options together."""
    start, end = recipe.loop_range(len(plans))
    found: dict[MemoryOptions, list[int]] = {}
    for i, plan in enumerate(plans):
        if plan.strategy != strategy:
            continue
        again: Literal["", "loop", "after"] = ""
        if recipe.recurs:
            again = "after" if i >= end else "loop" if i >= start else ""
        options = MemoryOptions(
            rule=plan.rule,
            decay=plan.decay,
            write=plan.write,
            window=recipe.window,
            passes=recipe.passes,
            recurrent=recipe.recurs,
            again=again,
            seed=recipe.seed,
        )
        found.setdefault(options, []).append(i)
    return tuple(Group(tuple(layers), options) for options, layers in found.items())


def rings(plans: tuple[LayerPlan, ...]) -> Rings:
    """The lengths of KV windows, and the layers that have each; None is as long as the model has positions."""
    found: dict[int | None, list[int]] = {}
    for i, plan in enumerate(plans):
        if plan.strategy != "replace":
            found.setdefault(plan.window, []).append(i)
    return tuple((window, tuple(layers)) for window, layers in found.items())
