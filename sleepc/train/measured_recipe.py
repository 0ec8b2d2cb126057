"""What a recipe leaves open, measured on a model: which layers stay full attention, and how slots are shared."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache

from torch import Tensor

from sleepc.errors import SleepcWarning, UsageError
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.analysis.hybrid import fit_hybrid
from sleepc.passes.analysis.own_windows import leave_own_windows
from sleepc.passes.plan import may_keep
from sleepc.passes.rewrite.kept_pairs import heads_that_keep
from sleepc.progress import Progress
from sleepc.recipe import AUTO, Keep, Override, Recipe
from sleepc.train.budgets import FEW, echo, twice, worth_of

SLOTS = 128  # on average, whatever is kept: the layers that want most of these are those that look back most


def measured_recipe(
    canonical: ProgramGraphs, recipe: Recipe, tokens: Callable[[], Sequence[int]], progress: Progress
) -> Recipe:
    """The recipe for a program at level CANONICAL, with its own windows left as the recipe says, `layers: auto:N` as
    layers, `budgets: auto` as numbers, and `slots` as given budgets have them. `tokens` are asked for, and read, once
    and only if something is to be measured.

    Raises UsageError for a number of layers that leaves none to convert, and for too few tokens.
    """

    @cache
    def heard() -> list[Tensor]:
        return echo(canonical, twice(canonical, recipe, tokens(), FEW), recipe.sinks, progress)

    found = leave_own_windows(fit_hybrid(_leave_layers(canonical, recipe, heard), canonical), canonical)
    keep = found.keep
    if keep is None or keep.budgets == "equal":
        return found
    heads = heads_that_keep(canonical, may_keep(found.plan(len(canonical.layout)), found.window))
    if not any(heads):
        return found  # which cannot be converted
    if not isinstance(keep.budgets, str):
        return _with_their_slots(found, keep, sum(map(sum, keep.budgets)), sum(heads))
    budgets = worth_of(heard(), heads, canonical, found).budgets(keep.slots)
    return found.model_copy(update={"keep": keep.model_copy(update={"budgets": budgets})})


def _with_their_slots(recipe: Recipe, keep: Keep, given: int, heads: int) -> Recipe:
    """A recipe whose budgets give so many slots to so many KV heads: `slots` is what these have on average."""
    slots = max(round(given / heads), 1)
    if "slots" in keep.model_fields_set and slots != keep.slots:
        text = f"keep asks for {keep.slots} slots on average, and the budgets take precedence with {given / heads:.3g}"
        warnings.warn(text, SleepcWarning, stacklevel=2)
    return recipe.model_copy(update={"keep": keep.model_copy(update={"slots": slots})})


def _leave_layers(canonical: ProgramGraphs, recipe: Recipe, heard: Callable[[], list[Tensor]]) -> Recipe:
    """A recipe with `layers: auto:N` as one that leaves the N layers that look back most as full attention, which grows
    with what is read, and converts the others; any other recipe as it is.
    """
    asked = AUTO.fullmatch(recipe.layers)
    if asked is None:
        return recipe
    recipe = recipe.model_copy(update={"layers": "all"})
    heads = heads_that_keep(canonical, frozenset(range(len(canonical.layout))))
    few = sum(1 for n in heads if n)
    if int(asked[1]) >= few:
        raise UsageError(
            f"{few} layers see all that was read, and at least one has to be converted",
            where=f"--layers {asked[0]}",
            fix=f"Leave at most {few - 1}." if few > 1 else "Convert them all.",
        )
    counts = iter(worth_of(heard(), heads, canonical, recipe).wanted(SLOTS).tolist())
    wanted = [sum(next(counts) for _ in range(n)) for n in heads]
    best = sorted(sorted(range(len(heads)), key=lambda i: -wanted[i])[: int(asked[1])])
    left = Override(layers=",".join(map(str, best)), strategy="leave", window="none")
    return recipe.model_copy(update={"overrides": (left, *recipe.overrides)})
