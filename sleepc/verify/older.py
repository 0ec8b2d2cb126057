"""Artifacts that an older sleepc made with a fault that conversions no longer have: said, and not measured."""

from __future__ import annotations

import warnings

from sleepc.errors import SleepcError, SleepcWarning
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.analysis.find_sites import find_attention, find_site
from sleepc.passes.rewrite.key_positions import is_held
from sleepc.recipe import Recipe
from sleepc.verify.oracle import brings_near

MANY = 8


WHAT = (
    "this program was made by an older sleepc, which left the sinks of layers with a window of their own too far "
    "away: it still runs as it did, but texts past that window are answered worse"
)
FIX = "Convert the model again."


def refuse_far_sinks(step: ProgramGraphs, canonical: ProgramGraphs, recipe: Recipe) -> None:
    """Raises SleepcError, with the layers, for a program that leaves sinks where they came in layers whose own window
    is narrowed: they stand at distances that these layers have never seen, and answers past that window are worse.
    """
    layers = _far_sinks(step, canonical, recipe)
    if layers:
        raise SleepcError(WHAT, where=layers, fix=FIX)


def warn_of_far_sinks(step: ProgramGraphs, canonical: ProgramGraphs, recipe: Recipe) -> None:
    """The same as a warning."""
    layers = _far_sinks(step, canonical, recipe)
    if layers:
        warnings.warn(f"{WHAT} ({layers}). {FIX}", SleepcWarning, stacklevel=3)


def _far_sinks(step: ProgramGraphs, canonical: ProgramGraphs, recipe: Recipe) -> str:
    """These layers in words; "" for none."""
    far = [i for i in range(len(step.layout)) if _is_near_by_recipe(canonical, recipe, i) and not _is_near(step, i)]
    more = f" and {len(far) - MANY} more" if len(far) > MANY else ""
    return f"layer{'s' if len(far) > 1 else ''} {', '.join(map(str, far[:MANY]))}{more}" if far else ""


def _is_near_by_recipe(canonical: ProgramGraphs, recipe: Recipe, i: int) -> bool:
    plan, wake = recipe.plan(len(canonical.layout))[i], canonical.classes[canonical.layout[i].cls].wake
    if plan.strategy == "replace" or plan.window is None or not find_attention(wake):
        return False
    return brings_near(recipe, find_site(wake), plan.window)


def _is_near(step: ProgramGraphs, i: int) -> bool:
    """Does the block read positions of the keys that it holds?"""
    return any(is_held(name) for name in step.classes[step.layout[i].cls].wake.ports("input"))
