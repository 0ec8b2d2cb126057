"""The programs that are compared: the converted one with other numbers of passes, and full attention."""

from __future__ import annotations

from collections.abc import Callable

import torch

from sleepc.errors import UsageError
from sleepc.ir.graph import is_call
from sleepc.ir.program import ProgramGraphs
from sleepc.memory.registry import find as find_rule
from sleepc.memory.registry import named
from sleepc.passes.consolidation.registry import find as find_consolidation
from sleepc.passes.pipeline import rewritten
from sleepc.recipe import Recipe, make_recipe
from sleepc.runtime.steps import Steps

PIECE = 512  # tokens


def with_passes(program: ProgramGraphs, recipe: Recipe, passes: int) -> ProgramGraphs:
    """A program that replays each window `passes` times. Raises UsageError if its sleeps do not replay, or more than
    one pass makes no sense.
    """
    find_consolidation(recipe.consolidation).check_other_passes(recipe)
    program = program.clone()
    replays = [
        node
        for cls in program.classes.values()
        if cls.sleep is not None
        for node in cls.sleep.calls()
        if is_call(node, torch.ops.sleepc.replay.default)
    ]
    if not replays:
        raise UsageError(
            "this artifact's memories are written by every token, and a sleep replays nothing",
            where="--sweep",
            fix="Convert it with --passes 2, which keeps what a replay needs, or with --write sleep.",
        )
    for node in replays:
        rule = str(node.kwargs["rule"])
        if passes > 1 and not find_rule(rule).corrects:
            raise UsageError(
                f"rule {rule} does not correct what it wrote: replaying a window {passes} times only multiplies what "
                "it adds",
                where="--sweep",
                fix=f"Convert with a rule that corrects ({named(corrects=True)}).",
            )
        node.kwargs = {**node.kwargs, "passes": passes}
    return program


def full_attention(canonical: ProgramGraphs, tokens: int) -> ProgramGraphs:
    """The original as a program that reads `tokens` tokens, or as many as it has positions, in one window: nothing is
    evicted and there are no memories. Raises UsageError if these are more keys than the model picks.
    """
    window, picked = min(tokens, canonical.max_positions or tokens), canonical.picked
    if picked is not None and window > picked:
        raise UsageError(
            f"the model itself picks up to {picked} keys for a query, and full attention is what was captured, where "
            f"it picks all: {window} tokens are more",
            where="--distances, --length",
            fix=f"Choose streams of up to {picked} tokens.",
        )
    recipe = make_recipe({"window": window, "sinks": 0, "overrides": [{"layers": "all", "strategy": "leave"}]})
    return rewritten(canonical, recipe)


def full_attention_for(canonical: ProgramGraphs, make: Callable[[ProgramGraphs], Steps]) -> Callable[[int], Steps]:
    """Full attention for any number of tokens: programs for so many, in steps of PIECE, are made when needed. They
    raise as `full_attention` does.
    """
    made: dict[int, Steps] = {}

    def steps(tokens: int) -> Steps:
        size = -(-tokens // PIECE) * PIECE
        if canonical.picked is not None:
            size = max(tokens, min(size, canonical.picked))
        if size not in made:
            made[size] = make(full_attention(canonical, size))
        return made[size]

    return steps
