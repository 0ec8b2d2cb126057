"""The sliding window that a program has to beat: the original's weights, no memory, and as many bytes of state."""

from __future__ import annotations

from collections.abc import Callable

from sleepc.errors import UsageError
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.pipeline import rewritten
from sleepc.recipe import Recipe, make_recipe


def equal_window(canonical: ProgramGraphs, recipe: Recipe, most: int) -> ProgramGraphs:
    """A sliding window with the recipe's sinks, as wide as `most` bytes of state allow, or as the model has positions.

    Raises UsageError if not even a window of one token fits.
    """

    def sliding(window: int) -> ProgramGraphs:
        options = recipe.model_dump(include={"sinks", "last_position", "own_windows", "rope_factors"})
        overrides = [{"layers": "all", "strategy": "leave"}]
        plan = make_recipe({**options, "window": window, "overrides": overrides})
        return rewritten(canonical, plan)

    positions = canonical.max_positions
    return widest(sliding, most, most if positions is None else max(positions - recipe.sinks, 1))


def widest(sliding: Callable[[int], ProgramGraphs], most: int, limit: int) -> ProgramGraphs:
    """The widest window up to `limit` whose state has at most so many bytes. These grow with it piecewise linearly, so
    a line through the last two that were tried says where to look next.
    """
    best, low, high = sliding(1), 1, limit + 1  # low fits; high does not, or does not exist
    if best.state_bytes() > most:
        raise UsageError(
            f"no sliding window has as few as {most} bytes of state: a window of one token has {best.state_bytes()}"
        )
    guess = 2
    while low + 1 < high:
        tried = sliding(min(max(guess, low + 1), high - 1))
        width, size = tried.window, tried.state_bytes()
        if size > most:
            high = width
            guess = (low + high) // 2
            continue
        slope = max((size - best.state_bytes()) / (width - low), 1)
        guess = width + int((most - size) / slope)
        best, low = tried, width
        if guess == low:  # the next wider one would be too large, if it grows linearly
            guess = low + 1
    return best
