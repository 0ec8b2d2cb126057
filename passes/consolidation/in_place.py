"""Consolidation `in_place`: sleeps write the down-projections of some MLPs (In-Place TTT, arXiv 2604.06169).

    y_t = W z_t + Dᵀ z_t           wake: z is what the down-projection W reads, D [d_f,d] what sleeps have added
    V = conv(X) W_targetᵀ          sleep: targets [L,d] of the window's tokens
    D' = D + 3 Zᵀ V                one step up <V, W Z>, from which no gradient flows through the model

It is linear attention from window to window with q = k = z and v = V, so D after n windows is the sum of their
products: the exact prefix form. Memories of the layers are written as by `replay`.

What the paper leaves open, or what is different here:
- A chunk is a window, since it is when sleeps come. The paper's are 512 to 4,096 tokens. A window that ends early (a
  forced sleep) is written with the tokens that it has, where the paper keeps them for the next chunk: they leave.
- X is the residual stream as it enters the block ("hidden states", for models that are trained already), over its root
  mean square: pretrained models have channels hundreds of times as large as others, which a step of rate 3 would
  write.
- The convolution has 5 taps, is depthwise, and ends at the window's ends. Its taps are zero at first, and W_target
  diagonal, so a conversion changes nothing until it is trained.
- There is neither decay nor a limit to D, as in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, fx

from sleepc.errors import UsageError
from sleepc.memory.parameters import TARGET, TARGET_TAPS
from sleepc.passes.base import Pass
from sleepc.passes.consolidation.add_fast_down import DOWN, RATE, AddFastDown, write_down
from sleepc.passes.consolidation.block_sleep import BlockSleep
from sleepc.passes.consolidation.contract import Plans, StreamSleep
from sleepc.passes.consolidation.replay import Replay
from sleepc.recipe import Recipe, parse_layers

WRITING = ("in_place", "gradient")  # which write MLPs
EVERY = 6  # blocks, of which one is written if the recipe does not say which; the paper's 0, 6, 12, ...


class InPlace(Replay):
    """`replay`, and the MLPs of some blocks are written once."""

    name: ClassVar[str] = "in_place"

    def check_unused(self, recipe: Recipe) -> None:
        """`mlps` is about what sleeps of this one write, and those that learn."""
        if recipe.mlps != "auto" and recipe.consolidation not in WRITING:
            raise UsageError(
                f"consolidation {recipe.consolidation} writes no MLPs",
                where=f"--mlps {recipe.mlps}",
                fix=f"Add --consolidation {' or '.join(WRITING)}, or leave it out.",
            )

    def check_layers(self, recipe: Recipe, plans: Plans) -> None:
        """Blocks that are there."""
        super().check_layers(recipe, plans)
        self.written(recipe, len(plans))

    def changes(self, recipe: Recipe) -> bool:
        """Sleeps write MLPs."""
        return True

    def written(self, recipe: Recipe, blocks: int) -> tuple[int, ...]:
        """The blocks that `mlps` names."""
        if recipe.mlps == "auto":
            return tuple(range(0, blocks, EVERY))
        return parse_layers(recipe.mlps, blocks, where="--mlps")

    def rewrites(self, recipe: Recipe, plans: Plans) -> tuple[Pass, ...]:
        """A state beside each down-projection, and the window's record of what it reads."""
        return (AddFastDown(self.written(recipe, len(plans)), recipe.window, recipe.seed),)

    def sleep(self, block: BlockSleep) -> dict[str, fx.Node]:
        """The memory, and what is added to the down-projection."""
        return super().sleep(block) | write_down(block)

    def remember(self, sleep: StreamSleep) -> None:
        """The formula above, token by token."""
        super().remember(sleep)
        for i in self.written(sleep.recipe, len(sleep.plans)):
            layer, parameters = sleep.layers[i], sleep.parameters_of(i)
            layer.fast[DOWN] = naive_write(layer.fast[DOWN], layer.inputs, layer.sources, parameters)

    def in_words(self, recipe: Recipe, blocks: int) -> str:
        """What is written."""
        named = ", ".join(map(str, self.written(recipe, blocks)))
        return f"{Replay().in_words(recipe, blocks)}, and the MLPs of blocks {named} are written"


def naive_write(fast: Tensor, z: Tensor, x: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
    """D [B,d_f,d] after a window of z [B,n,d_f] and x [B,n,d]."""
    taps, target = parameters[TARGET_TAPS.name], parameters[TARGET.name]
    count, around = x.shape[1], taps.shape[1] // 2
    for t in range(count):
        near = [j for j in range(t - around, t + around + 1) if 0 <= j < count]
        mixed = torch.stack([taps[:, j - t + around] * x[:, j] for j in near]).sum(0)
        fast = fast + RATE * torch.einsum("bi,bo->bio", z[:, t], torch.einsum("oc,bc->bo", target, mixed))
    return fast
