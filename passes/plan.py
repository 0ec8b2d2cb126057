"""From a recipe to the options of every pass: the layers that get the same thing, and what that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sleepc.errors import UsageError
from sleepc.memory.features import find as find_features
from sleepc.memory.registry import find as find_rule
from sleepc.memory.registry import named
from sleepc.recipe import Decay, Hebbian, Keep, LayerPlan, Layout, ReadOrder, Recipe, WriteTime


@dataclass(frozen=True)
class Asleep:
    """What sleeps do to a layer's memory, as the consolidation says.

    `recorded`: do they need the window's keys, values and gates? `replays`: how often the rule is applied to those.
    `again`: does the block run again over the window? `decays`: how often a window makes the memory decay. `noise`:
    what runs through it after that. `drops`: where a layer keeps pairs, is it written with what slots drop, in place of
    the window?
    """

    recorded: bool
    replays: int = 1
    again: bool = False
    decays: int = 1
    noise: Hebbian | None = None
    drops: bool = True

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
    layout: Layout = "graph"
    features: str = "unit"
    read: ReadOrder = "after"


@dataclass(frozen=True)
class Group:
    """Layers and the options of their memories."""

    layers: tuple[int, ...]
    options: MemoryOptions


Groups = tuple[Group, ...]
Rings = tuple[tuple[int | None, tuple[int, ...]], ...]
Budget = tuple[int, ...]
"""How many pairs every KV head of a layer keeps in addition to its window."""


def check_rules(recipe: Recipe) -> None:
    """Raises UsageError for unknown rules and features, and features that do not fit. Needs no model."""
    find_features(recipe.features)
    if recipe.layout == "native" and recipe.features != "unit":
        raise UsageError(
            "the layer of the native layout takes queries and keys as they are",
            where=f"--features {recipe.features}",
            fix="Leave it out, or use --layout graph.",
        )
    for name in (recipe.rule, *(override.rule for override in recipe.overrides if override.rule)):
        find_rule(name)


def check_memory(plan: LayerPlan, layer: str) -> None:
    """Raises UsageError for a memory whose rule cannot decay as it is to, or takes a window at once and is to be
    written by every token. `layer` is what the place in an error begins with: "layer 3, ", or nothing.
    """
    rule = find_rule(plan.rule)
    if plan.decay == "channel" and not rule.decays_by_channel:
        what = "no decay per channel" if rule.decays else "no decay, neither per head nor per channel"
        fix = f"Use --decay head, or a rule that decays so ({named(by_channel=True)})."
        raise UsageError(f"rule {plan.rule} has {what}", where=f"{layer}--decay", fix=fix)
    if plan.write == "online" and rule.by_window:
        fix = "Use --strategy parallel, insert with --write sleep, or another --rule."
        what = f"rule {plan.rule} writes a whole window at once, and this memory would be written by every token"
        raise UsageError(what, where=f"{layer}--rule", fix=fix)


def memory_groups(recipe: Recipe, plans: tuple[LayerPlan, ...], strategy: str, asleep: Sequence[Asleep]) -> Groups:
    """The layers of one strategy, those with the same options together; `asleep` is of every layer."""
    found: dict[MemoryOptions, list[int]] = {}
    for i, plan in enumerate(plans):
        if plan.strategy == strategy:
            read: ReadOrder = recipe.read if plan.write == "online" else "after"
            own, last = (plan.rule, plan.decay, plan.write), (plan.layout, recipe.features, read)
            options = MemoryOptions(*own, recipe.window, asleep[i], recipe.seed, *last)
            found.setdefault(options, []).append(i)
    return tuple(Group(tuple(layers), options) for options, layers in found.items())


def rings(plans: tuple[LayerPlan, ...]) -> Rings:
    """The lengths of KV windows, and the layers that have each; None is as long as the model has positions."""
    found: dict[int | None, list[int]] = {}
    for i, plan in enumerate(plans):
        if plan.strategy != "replace":
            found.setdefault(plan.window, []).append(i)
    return tuple((window, tuple(layers)) for window, layers in found.items())


def may_keep(plans: tuple[LayerPlan, ...], every: int) -> frozenset[int]:
    """The layers whose attention loses what leaves its window: those that may keep pairs of it. A window below `every`,
    the tokens from sleep to sleep, has lost some of them before a sleep could choose.
    """
    kept = (i for i, p in enumerate(plans) if p.window is not None and p.window >= every and p.strategy != "replace")
    return frozenset(kept)


def budgets(keep: Keep | None, heads: Sequence[int]) -> tuple[Budget, ...]:
    """The slots of every KV head of every layer; `heads`: how many KV heads of a layer can keep pairs, 0 for none.

    Raises UsageError for budgets that are another model's, or that give slots to what cannot keep pairs.
    """
    if keep is None:
        return ((),) * len(heads)
    if isinstance(keep.budgets, str):
        return tuple((keep.slots,) * count for count in heads)
    if len(keep.budgets) != len(heads):
        raise _other_budgets(f"they are for {len(keep.budgets)} layers, and the model has {len(heads)}")
    for i, (budget, count) in enumerate(zip(keep.budgets, heads, strict=True)):
        if any(budget) and not count:
            raise _other_budgets(f"layer {i} gets {sum(budget)} slots, and keeps no pairs: nothing leaves its window")
        if budget and count and len(budget) != count:
            raise _other_budgets(f"layer {i} gets slots for {len(budget)} KV heads, and has {count}")
    return tuple(budget if any(budget) else () for budget in keep.budgets)


def _other_budgets(what: str) -> UsageError:
    fix = "Use budgets that were made for this model with these layers (sleepc calibrate --only budgets), or equal."
    return UsageError(f"the budgets do not fit: {what}", where="keep.budgets", fix=fix)
