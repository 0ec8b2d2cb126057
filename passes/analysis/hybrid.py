"""Models with recurrent layers of their own beside attention: what a recipe means for them."""

from __future__ import annotations

from sleepc.errors import UsageError
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.analysis.find_sites import find_attention
from sleepc.passes.analysis.own_windows import asked_by_number, numbers
from sleepc.recipe import Override, Recipe


def fit_hybrid(recipe: Recipe, canonical: ProgramGraphs) -> Recipe:
    """The recipe for this model, with an override that leaves layers without attention as they are: they carry their
    own state at any length, and have no window to bound. The recipe itself if all layers have attention.

    Raises UsageError if a memory is asked for in such a layer, by its number.
    """
    without = [i for i, block in enumerate(canonical.layout) if not find_attention(canonical.classes[block.cls].wake)]
    asked = sorted(asked_by_number(recipe, len(canonical.layout)).intersection(without))
    if asked:
        raise UsageError(
            f"layer {asked[0]} has no attention to bound or to give a memory: it is recurrent by itself",
            where="--layers, overrides",
            fix=f"Leave out layers {numbers(without)}; they stay as they are.",
        )
    plans = recipe.plan(len(canonical.layout))
    if all(plans[i].strategy == "leave" for i in without):
        return recipe
    left = Override(layers=numbers(without), strategy="leave")
    return recipe.model_copy(update={"overrides": (left, *recipe.overrides)})
