"""What a recipe leaves open, measured on a model: which layers stay full attention, and how slots are shared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from torch import Tensor

from sleepc.errors import UsageError
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.analysis.own_windows import leave_own_windows
from sleepc.passes.plan import may_keep
from sleepc.passes.rewrite.kept_pairs import heads_that_keep
from sleepc.progress import Progress
from sleepc.recipe import AUTO, Override, Recipe
from sleepc.train.budgets import FEW, echo, twice, worth_of

SLOTS = 128  # on average, whatever is kept: the layers that want most of these are those that look back most


def measured_recipe(
    canonical: ProgramGraphs, recipe: Recipe, tokens: Callable[[], Sequence[int]], progress: Progress
) -> Recipe:
    """The recipe for a program at level CANONICAL, with its own windows left as the recipe says, `layers: auto:N` as
    layers, and `budgets: auto` as numbers. `tokens` are asked for, and read, once and only if one of them is to be
    measured.

    Raises UsageError for a number of layers that leaves none to convert, and for too few tokens.
    """

    @cache
    def heard() -> list[Tensor]:
        return echo(canonical, twice(canonical, recipe, tokens(), FEW), recipe.sinks, progress)

    found = leave_own_windows(_leave_layers(canonical, recipe, heard), canonical)
    keep = found.keep
    if keep is None or keep.budgets != "auto":
        return found
    heads = heads_that_keep(canonical, may_keep(found.plan(len(canonical.layout)), found.window))
    if not any(heads):
        return found  # which cannot be converted
    budgets = worth_of(heard(), heads, canonical, found).budgets(keep.slots)
    return found.model_copy(update={"keep": keep.model_copy(update={"budgets": budgets})})


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
