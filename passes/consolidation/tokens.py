"""Consolidation `tokens`: a window becomes k soft tokens, whose keys and values stay (ICAE, arXiv 2307.06945).

    e_j      the embedding of the window's token t_j, the last one of its (j+1)-th part of k
    x        blocks'(window, e_0 + m_0 .. e_{k-1} + m_{k-1})    the encoder: the blocks with LoRA, behind the window
    z_j      e_j + g x_j / rms(x_j)                             the soft tokens, at the positions of the t_j
    slots    k and v of z in every layer, by the blocks as they are, which see the sinks and the z before

m [k,d], g [d] and the LoRA matrices are learned; m, g and one of each pair are zero at first. Soft tokens stand in
slots, as kept pairs do (passes/keep): those of the latest `windows` windows stay, and the oldest leave first. A token
sees one once its position has left the window. Memories of the layers are written as by `replay`.

What the paper leaves open, or what is different here (docs/decisions/0033-soft-tokens.md):
- The encoder reads the window's keys and values as wake left them, so that a sleep reads 2 k tokens instead of L + 2 k:
  LoRA changes the k places alone, as in Compressed Context Memory (arXiv 2312.03414).
- Places begin as tokens of the window, so that an untrained program keeps k of its words, read without the others,
  instead of noise.
- Soft tokens stand where the tokens stood that they begin as (arXiv 2409.14364 finds that better than one after the
  other), so that nothing is seen further away than it was, and positions are counted on, or renumbered, as with `keep`.
- A sleep of fewer than k tokens makes k soft tokens of them all the same; one of none makes none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar

from sleepc.errors import UsageError
from sleepc.passes.base import Pass
from sleepc.passes.consolidation.add_encoder import AddEncoder
from sleepc.passes.consolidation.block_sleep import BlockSleep, Leaving
from sleepc.passes.consolidation.contract import Plans, Untrained
from sleepc.passes.consolidation.replay import Replay
from sleepc.passes.plan import Asleep
from sleepc.recipe import Keep, Recipe, Soft


class SoftTokens(Replay):
    """`replay`, and windows become soft tokens."""

    name: ClassVar[str] = "tokens"

    def check(self, recipe: Recipe) -> None:
        """Slots hold soft tokens and nothing else, at positions that go on."""
        super().check(recipe)
        soft = self.soft(recipe)
        if recipe.keep is not None:
            raise UsageError(
                "slots hold soft tokens, or pairs of the window, not both",
                where="--keep",
                fix="Leave it out (--soft-tokens and --soft-windows say how many slots there are), or use "
                "--consolidation replay.",
            )
        if recipe.eviction == "hard":
            raise UsageError(
                "hard eviction restarts positions at each sleep, and soft tokens keep theirs",
                where="--eviction hard",
                fix="Use --eviction sliding.",
            )
        if soft.tokens > recipe.window:
            raise UsageError(
                f"a window of {recipe.window} tokens cannot become {soft.tokens}, which are more",
                where="--soft-tokens",
                fix=f"Give {recipe.window} or fewer.",
            )

    def check_unused(self, recipe: Recipe) -> None:
        """Its options say what windows become."""
        if recipe.soft is not None:
            raise UsageError(
                f"consolidation {recipe.consolidation} makes no soft tokens",
                where="--soft-*",
                fix=f"Add --consolidation {self.name}, or leave them out.",
            )

    def check_layers(self, recipe: Recipe, plans: Plans) -> None:
        """Attention everywhere."""
        super().check_layers(recipe, plans)
        for i, plan in enumerate(plans):
            if plan.strategy == "replace":
                raise UsageError(
                    "soft tokens are made and read by attention, and this layer has none left",
                    where=f"layer {i}",
                    fix="Use --strategy parallel or insert, or --consolidation replay.",
                )

    def keep(self, recipe: Recipe) -> Keep | None:
        """As many slots as soft tokens, in every head."""
        soft = self.soft(recipe)
        return Keep(slots=soft.tokens * soft.windows, score="newest", budgets="equal")

    def soft(self, recipe: Recipe) -> Soft:
        """Those of the recipe."""
        return recipe.soft or Soft()

    def asleep(self, recipe: Recipe, plans: Plans, i: int) -> Asleep:
        """Memories write the window: slots hold nothing for them."""
        return replace(super().asleep(recipe, plans, i), drops=False)

    def changes(self, recipe: Recipe) -> bool:
        """Sleeps make soft tokens."""
        return True

    def rewrites(self, recipe: Recipe, plans: Plans) -> tuple[Pass, ...]:
        """The encoder, of the blocks as they are without memories."""
        soft = self.soft(recipe)
        sizes = soft.tokens, soft.rank, recipe.window, recipe.sinks
        return (AddEncoder(*sizes, recipe.seed, soft.encoder, soft.width),)

    def leaving(self, block: BlockSleep) -> Leaving | None:
        """What the encoder made: the newest stay."""
        return block.soft_tokens()

    def in_words(self, recipe: Recipe, blocks: int) -> str:
        """What stays."""
        soft = self.soft(recipe)
        made = f"the window becomes {soft.tokens} soft tokens, and those of the latest {soft.windows} windows stay"
        return f"{Replay().in_words(recipe, blocks)}, and {made}"

    def again_in_words(self, recipe: Recipe, blocks: int, named: Callable[[Sequence[int]], str]) -> str:
        """What runs."""
        count = self.soft(recipe).tokens
        what = f"{count} places behind the window, and the {count} soft tokens that come of them"
        return f"{named(range(blocks)).capitalize()} read {what}."

    def untrained(self, recipe: Recipe) -> Untrained | None:
        """Before training, soft tokens are words of the window."""
        return Untrained(
            "until it is trained, consolidation tokens keeps some words of each window, read without the others",
            "soft tokens are words of their windows until their encoder is trained",
            "train it (sleepc distil)",
        )
