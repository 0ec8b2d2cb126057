"""All consolidations by name; a new one collides with nothing."""

from __future__ import annotations

from sleepc.errors import UsageError
from sleepc.names import check_new
from sleepc.passes.consolidation.contract import Consolidation
from sleepc.passes.consolidation.gradient import ByGradient
from sleepc.passes.consolidation.hebbian import ByNoise
from sleepc.passes.consolidation.in_place import InPlace
from sleepc.passes.consolidation.recurrent import Recurrent
from sleepc.passes.consolidation.replay import Replay
from sleepc.passes.consolidation.tokens import SoftTokens
from sleepc.passes.plan import Asleep
from sleepc.recipe import Recipe

CONSOLIDATIONS: dict[str, Consolidation] = {}


def register(made: Consolidation) -> Consolidation:
    """Add one. Raises UsageError if its name is taken or not valid."""
    check_new("consolidation", made.name, CONSOLIDATIONS)
    CONSOLIDATIONS[made.name] = made
    return made


def find(name: str) -> Consolidation:
    """The one of that name; UsageError with the known names otherwise."""
    if name not in CONSOLIDATIONS:
        raise UsageError(
            f"no consolidation is named {name!r}", where="--consolidation", fix=f"One of: {', '.join(CONSOLIDATIONS)}."
        )
    return CONSOLIDATIONS[name]


def check(recipe: Recipe) -> None:
    """Raises UsageError if the recipe's consolidation is unknown, or does not fit. Needs no model."""
    chosen = find(recipe.consolidation)
    for each in CONSOLIDATIONS.values():
        if each is not chosen:
            each.check_unused(recipe)
    chosen.check(recipe)


def asleep(recipe: Recipe, blocks: int) -> tuple[Asleep, ...]:
    """What sleeps do to the memory of every layer of a model."""
    plans = recipe.plan(blocks)
    return tuple(find(recipe.consolidation).asleep(recipe, plans, i) for i in range(blocks))


for _made in (Replay(), Recurrent(), InPlace(), ByGradient(), ByNoise(), SoftTokens()):
    register(_made)
