"""Consolidation `recurrent`: blocks run again over the window, on what they made of it the time before (semantics.md,
section 4; arXiv 2605.26099, Algorithm 1). With one pass there is nothing to run again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from sleepc.errors import UsageError
from sleepc.passes.base import Pass
from sleepc.passes.consolidation.add_loop import AddLoop
from sleepc.passes.consolidation.contract import Consolidation, Memory, Plans, StreamSleep, Untrained
from sleepc.passes.plan import Asleep
from sleepc.recipe import Recipe


class Recurrent(Consolidation):
    """A sleep writes the record once, runs the loop's blocks N - 1 times over the window, which writes their memories
    again, and then the blocks behind the loop once, from the memories that they had when the window began.
    """

    name: ClassVar[str] = "recurrent"

    def check(self, recipe: Recipe) -> None:
        """A single pass cannot end early."""
        if recipe.passes == 1:
            self.check_unused(recipe)

    def check_unused(self, recipe: Recipe) -> None:
        """`settle` is about further passes."""
        if recipe.settle:
            raise UsageError(
                "only recurrent passes after the first can end early, and this recipe has none",
                where=f"--settle {recipe.settle:g}",
                fix="Add --consolidation recurrent and --passes 2 or more, or leave it out.",
            )

    def check_layers(self, recipe: Recipe, plans: Plans) -> None:
        """A memory has to be there that settles; what a hybrid carries itself counts beside one."""
        start, end = recipe.loop_range(len(plans))
        if recipe.settle and all(plan.strategy == "leave" for plan in plans[start:end]):
            raise UsageError(
                "no block that recurrent passes run gets a memory, and without one no sleep ends early",
                where=f"--settle {recipe.settle:g}",
                fix="Leave it out, or choose a --loop over blocks with memories.",
            )

    def check_other_passes(self, recipe: Recipe) -> None:
        """Half-lives are chosen for N passes."""
        raise UsageError(
            "this artifact's passes run blocks again, and its half-lives were chosen for their number",
            where="--sweep",
            fix="Convert the model once per number of passes, and evaluate each artifact.",
        )

    def asleep(self, recipe: Recipe, plans: Plans, i: int) -> Asleep:
        """In the loop a memory is written by every pass; behind it by the one run over what the loop refined, so
        a record would have no use.
        """
        start, end = recipe.loop_range(len(plans))
        again = recipe.passes > 1 and i >= start
        return Asleep(
            recorded=plans[i].write == "sleep" and not (again and i >= end),
            again=again,
            decays=recipe.passes if again and i < end else 1,
        )

    def stateful(self, recipe: Recipe, blocks: int) -> tuple[Pass, ...]:
        """The loop."""
        return (AddLoop(*recipe.loop_range(blocks), recipe.passes, recipe.window, recipe.sinks, recipe.settle),)

    def remember(self, sleep: StreamSleep) -> None:
        """Pass 1 writes what wake left, passes 2 to N run the loop, and then the blocks behind it run once."""
        count = len(sleep.plans)
        end = sleep.recipe.loop_range(count)[1]
        again = sleep.recipe.passes > 1
        for i, plan in enumerate(sleep.plans):
            if not (again and i >= end):
                sleep.replay(i, 1 if plan.write == "online" else 0, 1)
        if not again:
            return
        h = self._passes(sleep)
        for i in range(end, count):
            sleep.restart(i)
            h = sleep.run(i, h)
            _write(sleep, i)

    def _passes(self, sleep: StreamSleep) -> Tensor:
        """Passes 2 to N over the loop: h [B,n,d] refined. A row whose memories have settled is put back after them."""
        loop = range(*sleep.recipe.loop_range(len(sleep.plans)))
        layers, h = [sleep.layers[i] for i in loop], sleep.block_outputs[loop[-1]]
        moving, taken = [True] * sleep.rows, torch.ones(sleep.rows, dtype=torch.int64)
        for _ in range(2, sleep.recipe.passes + 1):
            old_h, old = h, [layer.memories for layer in layers]
            for i in loop:
                h = sleep.run(i, h, live=True)
                _write(sleep, i)
            h = put_back(h, old_h, moving)
            for layer, before in zip(layers, old, strict=True):
                layer.memories = [put_back(*pair, moving) for pair in zip(layer.memories, before, strict=True)]
            taken += torch.tensor(moving)
            if sleep.recipe.settle:
                changed = change(old, [layer.memories for layer in layers])
                moving = [go and c > sleep.recipe.settle for go, c in zip(moving, changed, strict=True)]
        sleep.taken = taken
        return h

    def in_words(self, recipe: Recipe, blocks: int) -> str:
        """With the blocks of the loop."""
        what = super().in_words(recipe, blocks)
        if recipe.passes > 1:
            start, end = recipe.loop_range(blocks)
            what += f" over blocks {start} to {end - 1}" if end - start > 1 else f" over block {start}"
        if recipe.settle:
            what += f", fewer once one changes memories by no more than {recipe.settle:g} of what they are"
        return what

    def again_in_words(self, recipe: Recipe, blocks: int, named: Callable[[Sequence[int]], str]) -> str:
        """The loop, and what comes behind it."""
        if recipe.passes == 1:
            return ""
        start, end = recipe.loop_range(blocks)
        one = end - start == 1
        run, they, write, their = ("runs", "it", "writes", "its") if one else ("run", "they", "write", "their")
        often = "once more" if recipe.passes == 2 else f"{recipe.passes - 1} more times"
        text = (
            f"{named(range(start, end)).capitalize()} {run} over the window {often}, on what {they} "
            f"made of it the time before, and {write} {their} memory again."
        )
        if recipe.settle and recipe.passes > 2:
            settle = f"{recipe.settle:g}"
            text += f" A text whose memories such a run changes by no more than {settle} of what they are stops there."
        after = range(end, blocks)
        return f"{text} Then {named(after)} run{'s' if len(after) == 1 else ''} over the result." if after else text

    def untrained(self, recipe: Recipe) -> Untrained | None:
        """Recurrent passes are computation that the model has never seen: only training makes them useful."""
        if recipe.passes == 1:
            return None
        return Untrained(
            warning=f"{recipe.passes} recurrent passes on a program that was not trained for them: each sleep runs "
            "blocks on states that they have never seen, and what it writes is likely worse than one pass. Use "
            "--consolidation replay, --passes 1, or train the program.",
            cause="recurrent passes run blocks on states that they have not been trained for",
            fix="--consolidation replay or --passes 1, or train it: sleepc distil",
        )


def _write(sleep: StreamSleep, i: int) -> None:
    """At the end of a pass: what was only read in it is written."""
    if sleep.plans[i].write == "sleep":
        sleep.replay(i, 0, 1)


def change(before: Sequence[Memory], after: Sequence[Memory]) -> list[float]:
    """|after - before| / |after| of each row, over all numbers of all memories; 0 if nothing changes."""
    memories = zip(before, after, strict=True)
    pairs = [(x.detach().double(), y.detach().double()) for both in memories for x, y in zip(*both, strict=True)]
    found = []
    for row in range(len(pairs[0][0]) if pairs else 0):
        apart = math.fsum(float((new[row] - old[row]).square().sum()) for old, new in pairs)
        size = math.fsum(float(new[row].square().sum()) for _, new in pairs)
        found.append(math.sqrt(apart / size) if apart else 0.0)
    return found


def put_back(new: Tensor, old: Tensor, moving: Sequence[bool]) -> Tensor:
    """`new` [B,..] in the rows that move, and `old` in the others."""
    return torch.stack([new[row] if go else old[row] for row, go in enumerate(moving)])
