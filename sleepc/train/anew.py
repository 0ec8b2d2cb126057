"""A program by another recipe, with all values that it has."""

from __future__ import annotations

from dataclasses import replace

from sleepc.ir.program import ProgramGraphs
from sleepc.passes.pipeline import rewritten
from sleepc.passes.rewrite.kept_pairs import budget_keys
from sleepc.recipe import Recipe
from sleepc.train.adapter import rank_of, with_rank


def converted_anew(graphs: ProgramGraphs, canonical: ProgramGraphs, recipe: Recipe) -> ProgramGraphs:
    """The program as `recipe` wants it, which differs from its own in evictions or in what is kept, with the values and
    the rank of `graphs`.
    """
    made = with_rank(rewritten(canonical, recipe), rank_of(graphs))
    new, known = budget_keys(made), graphs.params
    return replace(made, params={k: p if k in new else known.get(k, p) for k, p in made.params.items()})
