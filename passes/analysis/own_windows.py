"""Layers that have a window (or chunks) of their own are bounded already: which of them a conversion leaves."""

from __future__ import annotations

from sleepc.errors import UsageError
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.analysis.find_sites import Site, find_attention, find_sites
from sleepc.recipe import Override, Recipe, parse_layers

FACTOR = 4  # of the recipe's window: if a layer's own is longer than that, leaving it costs too much state


def leave_own_windows(recipe: Recipe, canonical: ProgramGraphs) -> Recipe:
    """The recipe for this model, with an override for each own window that is left: the layer keeps so many tokens, so
    that it computes what the original does at any length, and has no memory unless `layers` or an override asks for it
    by number. The recipe itself if nothing is left.

    `own_windows` "leave" leaves all, "narrow" none; "auto" those of up to FACTOR times the recipe's window, if there
    are other layers to convert (docs/decisions/0011). Overrides of the recipe's own come after, and so decide.

    Raises UsageError for "leave" if every layer has a window of its own: nothing would be converted.
    """
    own = own_windows(canonical)
    attending = [bool(find_attention(canonical.classes[block.cls].wake)) for block in canonical.layout]
    if recipe.own_windows == "narrow" or not any(own):
        return recipe
    if all(window for window, attends in zip(own, attending, strict=True) if attends):
        if recipe.own_windows == "auto":
            return recipe
        raise UsageError(
            f"every layer has a window of its own (of up to {max(own)} tokens): if all are left, nothing is converted",
            where="--own-windows leave",
            fix="Use --own-windows narrow: they keep --window tokens, and get memories.",
        )
    most = FACTOR * recipe.window if recipe.own_windows == "auto" else max(own)
    room = (canonical.max_positions or max(own) + recipe.sinks) - recipe.sinks
    asked, decided = asked_by_number(recipe, len(own)), _decided(recipe, len(own))
    left: dict[tuple[int, bool], list[int]] = {}
    for i, window in enumerate(own):
        if 0 < window <= most and i not in decided:
            kept = max(window, recipe.window) if i in asked else window
            left.setdefault((min(kept, room), i in asked), []).append(i)
    new = tuple(
        Override(layers=numbers(layers), window=window, strategy=None if with_memory else "leave")
        for (window, with_memory), layers in left.items()
    )
    return recipe.model_copy(update={"overrides": (*new, *recipe.overrides)}) if new else recipe


def own_windows(canonical: ProgramGraphs) -> tuple[int, ...]:
    """How many tokens each layer sees at most, by its own mask; 0 for all that the model has positions for."""
    limit = canonical.max_positions
    reach = {name: _reach(site) for name, site in find_sites(canonical).items()}
    own = (reach.get(block.cls, 0) for block in canonical.layout)
    return tuple(window if limit is None or window < limit else 0 for window in own)


def exact_tokens(recipe: Recipe, own: tuple[int, ...]) -> int:
    """How many tokens a converted program reads before it computes something else than the original: those up to the
    first sleep, or fewer if a layer keeps fewer, and less than its `own` mask lets it see (0: everything).
    """
    plans = zip(recipe.plan(len(own)), own, strict=True)
    kept = ((plan.window, sees) for plan, sees in plans if plan.strategy != "replace" and plan.window is not None)
    return min([recipe.window, *(window for window, sees in kept if not 0 < sees <= window)])


def _reach(site: Site) -> int:
    return site.mask.reach or 0


def asked_by_number(recipe: Recipe, count: int) -> frozenset[int]:
    """The layers for which a memory is asked by number."""
    names = [o.layers for o in recipe.overrides if o.strategy not in (None, "leave")]
    if recipe.layers != "all" and not recipe.layers.startswith("every:"):
        names.append(recipe.layers)
    return frozenset(i for layers in names for i in parse_layers(layers, count))


def _decided(recipe: Recipe, count: int) -> frozenset[int]:
    """The layers whose window an override gives."""
    given = (o.layers for o in recipe.overrides if o.window is not None)
    return frozenset(i for layers in given for i in parse_layers(layers, count, where="overrides"))


def numbers(layers: list[int]) -> str:
    """Layer numbers as a recipe has them: "0-4,6"."""
    parts: list[list[int]] = []
    for i in layers:
        if parts and parts[-1][-1] == i - 1:
            parts[-1] = [parts[-1][0], i]
        else:
            parts.append([i])
    return ",".join("-".join(map(str, part)) for part in parts)
