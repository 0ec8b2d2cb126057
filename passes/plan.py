"""From a recipe to what every pass is told: the layers that get the same thing, and what that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sleepc.errors import UsageError
from sleepc.memory.registry import find as find_rule
from sleepc.memory.registry import named
from sleepc.recipe import Decay, LayerPlan, Recipe, WriteTime


@dataclass(frozen=True)
class Asleep:
    """What sleeps do to a layer's memory, as the consolidation says.

    `recorded`: do they need the window's keys, values and gates? `replays`: how often the rule is applied to those.
    `again`: does the block run again over the window? `decays`: how often a window makes the memory decay.
    """

    recorded: bool
    replays: int = 1
    again: bool = False
    decays: int = 1

    @property
    def writes(self) -> int:
        """How often a window is written."""
        return max(self.replays, self.decays)


@dataclass(frozen=True)
class MemoryOptions:
    """How the memories of some layers are built: semantics.md, sections 3 to 5. `window`: tokens between sleeps."""

    rule: str
    decay: Decay
    write: WriteTime
    window: int
    asleep: Asleep
    seed: int


@dataclass(frozen=True)
class Group:
    """Layers and the options of their memories."""

    layers: tuple[int, ...]
    options: MemoryOptions


Groups = tuple[Group, ...]
Rings = tuple[tuple[int | None, tuple[int, ...]], ...]
Slots = tuple[tuple[int, tuple[int, ...]], ...]
"""How many pairs layers keep in addition to their windows, and the layers that keep so many."""


def check_rules(recipe: Recipe) -> None:
    """Raises UsageError for unknown rules, and for rules that do not fit the recipe. Needs no model."""
    for override in (None, *recipe.overrides):
        name = (override and override.rule) or recipe.rule
        rule = find_rule(name)
        if ((override and override.decay) or recipe.decay) == "channel" and not rule.decays:
            raise UsageError(
                f"rule {name} has no decay, neither per head nor per channel",
                where="--decay",
                fix=f"Use --decay head, or a rule that decays ({named(decays=True)}).",
            )


def memory_groups(recipe: Recipe, plans: tuple[LayerPlan, ...], strategy: str, asleep: Sequence[Asleep]) -> Groups:
    """The layers of one strategy, those with the same options together; `asleep` is of every layer."""
    found: dict[MemoryOptions, list[int]] = {}
    for i, plan in enumerate(plans):
        if plan.strategy == strategy:
            options = MemoryOptions(plan.rule, plan.decay, plan.write, recipe.window, asleep[i], recipe.seed)
            found.setdefault(options, []).append(i)
    return tuple(Group(tuple(layers), options) for options, layers in found.items())


def rings(plans: tuple[LayerPlan, ...]) -> Rings:
    """The lengths of KV windows, and the layers that have each; None is as long as the model has positions."""
    found: dict[int | None, list[int]] = {}
    for i, plan in enumerate(plans):
        if plan.strategy != "replace":
            found.setdefault(plan.window, []).append(i)
    return tuple((window, tuple(layers)) for window, layers in found.items())
