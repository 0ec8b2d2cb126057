"""All scores by name; a new one collides with nothing."""

from __future__ import annotations

from sleepc.errors import UsageError
from sleepc.names import check_new
from sleepc.passes.keep.contract import Score
from sleepc.passes.keep.key import KeyScore
from sleepc.passes.keep.newest import NewestScore
from sleepc.passes.keep.probe import ProbeScore
from sleepc.recipe import Recipe

SCORES: dict[str, Score] = {}


def register(made: Score) -> Score:
    """Add one. Raises UsageError if its name is taken or not valid."""
    check_new("score", made.name, SCORES)
    SCORES[made.name] = made
    return made


def find(name: str) -> Score:
    """The one of that name; UsageError with the known names otherwise."""
    if name not in SCORES:
        raise UsageError(f"no score is named {name!r}", where="keep.score", fix=f"One of: {', '.join(SCORES)}.")
    return SCORES[name]


def check(recipe: Recipe) -> None:
    """Raises UsageError for an unknown score, or a recipe whose positions begin anew at each sleep."""
    if recipe.keep is None:
        return
    find(recipe.keep.score)
    if recipe.eviction == "hard":
        raise UsageError(
            "hard eviction empties the window at each sleep and restarts positions, but kept pairs keep theirs",
            where="--eviction hard",
            fix="Use --eviction sliding, or convert without --keep.",
        )


for _made in (KeyScore(), NewestScore(), ProbeScore()):
    register(_made)
