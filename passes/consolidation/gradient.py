"""Consolidation `gradient` (test-time training, arXiv 2512.23675): sleeps take steps of gradient descent on windows.

    y_t = W z_t + Dᵀ A z_t                wake: of a linear map W that learns; D [r,out] is a row's state
    D' = D - lr min(1, clip / |g|) g      sleep, `steps` times: g is the gradient of the window's mean next-token loss

`mlps` says which blocks learn, and `weights` which of their maps; without `mlps` they are the last quarter. The blocks
from the first of them on, and the head, run over the window again, from the hidden states that wake left before it,
with attention confined as in recurrent passes; blocks below run neither forward nor back. Memories of the layers are
written as by `replay`.

What the paper leaves open, or what is different here:
- The paper gives these blocks an MLP more, which is learned from scratch. A conversion has none, so what is learned
  stands beside the maps of the block's own MLP, zero at first: W itself is never written, and rows share it. With
  `weights: prime` an MLP is added. It stands behind the block, where every kind of block has a place for it (the
  paper's is before the block's own MLP), is as wide as h, and has no norm behind it, which would make what it first
  learns as large as h: its last map is zero at first, so an untrained conversion computes what it did until a sleep
  has learned something.
- D has `rank` rows, behind a map A of the inputs that training may change: a quarter of SmolLM2's MLPs would be 85 MB
  of state for each row. Rank 0 is the whole map, whose inputs A only scales.
- A window that ends early (a forced sleep) is learned from the tokens that it has. The last token has no target.
- No momentum, no decay, and no per-token steps, as in the paper. The update of later blocks changes what earlier ones'
  gradient is at the next of several steps, not within one.
- The keys and values that a window leaves in the KV window are those of the weights before its sleep.
- The loss is the paper's, or counts later tokens more (`late`), or, as qTTT's, one stretch of `span` tokens alone,
  another one for each step (`span`), drawn by a fixed generator.
- `weights: query` are the maps of qTTT (arXiv 2512.13898), which learns from spans of a text whose keys and values are
  all there. Here a step has the window alone, computes keys and values of the blocks that learn again, and what is
  learned stays for what follows. Memories that read with the same queries read with what is learned.
- Training goes through the steps (second order) wherever it goes through a sleep.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sleepc.errors import UsageError
from sleepc.ir.graph import Graph
from sleepc.passes.analysis.linear_maps import LinearMap
from sleepc.passes.base import Pass
from sleepc.passes.consolidation.add_fast_maps import AddFastMaps, learned_maps
from sleepc.passes.consolidation.add_learning import AddLearning
from sleepc.passes.consolidation.add_prime import AddPrimeMlps
from sleepc.passes.consolidation.contract import Layer, Plans, StreamSleep
from sleepc.passes.consolidation.drawn import naive_draw
from sleepc.passes.consolidation.replay import Replay
from sleepc.recipe import Gradient, Recipe, parse_layers

Key = tuple[int, str]
MAPS = {"mlp": "the MLPs", "down": "the down-projections", "query": "the query projections", "prime": "the added MLPs"}

LOSSES = {"next": "", "late": ", later tokens more", "span": ", {} tokens a step"}
SPAN = 128  # tokens, qTTT's


class ByGradient(Replay):
    """`replay`, and what stands beside some linear maps learns the window's next tokens."""

    name: ClassVar[str] = "gradient"

    def check(self, recipe: Recipe) -> None:
        """A window has to have a next token."""
        super().check(recipe)
        options = options_of(recipe)
        if options.span is not None and options.loss != "span":
            raise UsageError(
                f"with loss {options.loss} all tokens of a window count, and no stretch of {options.span}",
                where="--gradient-span",
                fix="Add --gradient-loss span, or leave it out.",
            )
        if recipe.window < 2:
            raise UsageError(
                "a window of one token has no next token to learn", where="--window", fix="Give 2 or more."
            )

    def check_unused(self, recipe: Recipe) -> None:
        """Its options say how it learns."""
        if recipe.gradient is not None:
            raise UsageError(
                f"consolidation {recipe.consolidation} takes no steps of gradient descent",
                where="--gradient-*",
                fix=f"Add --consolidation {self.name}, or leave them out.",
            )

    def check_layers(self, recipe: Recipe, plans: Plans) -> None:
        """Blocks that are there, and memories that are as they were when the window began."""
        super().check_layers(recipe, plans)
        start = self.written(recipe, len(plans))[0]
        for i, plan in enumerate(plans[start:], start):
            if plan.strategy != "leave" and plan.write == "online":
                before = f"; or convert other layers, --layers 0-{start - 1}" if start else ""
                raise UsageError(
                    "steps of gradient descent run blocks again from the window's start, and the memory of this one "
                    "is written by every token",
                    where=f"block {i}",
                    fix=f"Use --strategy parallel, or insert with --write sleep{before}.",
                )

    def changes(self, recipe: Recipe) -> bool:
        """Sleeps learn."""
        return True

    def written(self, recipe: Recipe, blocks: int) -> tuple[int, ...]:
        """The blocks that `mlps` names, or the last quarter."""
        if recipe.mlps == "auto":
            return tuple(range(blocks - -(-blocks // 4), blocks))
        return parse_layers(recipe.mlps, blocks, where="--mlps")

    def maps(self, recipe: Recipe, graph: Graph) -> dict[str, LinearMap]:
        """Those that learn, of the block's own."""
        weights = options_of(recipe).weights
        return {} if weights == "prime" else learned_maps(graph, weights)

    def rewrites(self, recipe: Recipe, plans: Plans) -> tuple[Pass, ...]:
        """A state beside each map, or an MLP more."""
        options = options_of(recipe)
        if options.weights == "prime":
            return (AddPrimeMlps(self.written(recipe, len(plans)), options.rank, recipe.seed),)
        return (AddFastMaps(self.written(recipe, len(plans)), options.weights, options.rank, recipe.seed),)

    def behind(self, h: Tensor, layer: Layer, parameters: Mapping[str, Tensor]) -> Tensor:
        """With the MLP that was added, if one was."""
        return h + naive_prime(h, layer.fast, parameters) if "prime_norm" in parameters else h

    def stateful(self, recipe: Recipe, blocks: int) -> tuple[Pass, ...]:
        """The graph of a step."""
        options, start = options_of(recipe), self.written(recipe, blocks)[0]
        how = (options.steps, options.lr, options.clip, recipe.window, recipe.sinks, options.loss)
        return (AddLearning(start, *how, span_of(options)),)

    def remember(self, sleep: StreamSleep) -> None:
        """The steps by PyTorch's own differentiation of the model, from the memories that the window read."""
        learned = self._learned(sleep)
        super().remember(sleep)
        for (i, part), fast in learned.items():
            sleep.layers[i].fast[part] = fast

    def _learned(self, sleep: StreamSleep) -> dict[Key, Tensor]:
        options, blocks = options_of(sleep.recipe), self.written(sleep.recipe, len(sleep.plans))
        records = [layer.written for layer in sleep.layers]  # a block that runs again notes others
        old = {(i, part): fast for i in blocks for part, fast in sleep.layers[i].fast.items()}
        for step in range(options.steps if sleep.tokens.shape[1] > 1 else 0):
            counts = _counts(options, sleep.tokens.shape[1] - 1, sleep.earlier * options.steps + step)
            gradients = _gradients(sleep, blocks[0], old, counts)
            old = {key: fast - options.lr * gradients[key] for key, fast in old.items()}
        for layer, record in zip(sleep.layers, records, strict=True):
            layer.written = record
        return old

    def in_words(self, recipe: Recipe, blocks: int) -> str:
        """What is learned."""
        options, named = options_of(recipe), ", ".join(map(str, self.written(recipe, blocks)))
        steps = f"{options.steps} step{'' if options.steps == 1 else 's'} of gradient descent"
        rate = f"rate {options.lr:g}, clip {options.clip:g}{LOSSES[options.loss].format(span_of(options))}"
        learned = f"{steps} ({rate}) on {MAPS[options.weights]} of blocks {named}"
        return f"{Replay().in_words(recipe, blocks)}, and {learned}"

    def again_in_words(self, recipe: Recipe, blocks: int, named: Callable[[Sequence[int]], str]) -> str:
        """What runs forth and back."""
        if not options_of(recipe).steps:
            return ""
        written, maps = self.written(recipe, blocks), MAPS[options_of(recipe).weights]
        tail = named(range(written[0], blocks)).capitalize()
        learn = f"{maps} of {named(written)} learn"
        return f"{tail} and the head run over the window again, and back: {learn} which token came next."


def naive_prime(h: Tensor, fast: dict[str, Tensor], p: Mapping[str, Tensor]) -> Tensor:
    """What the added MLP answers to h [B,n,d]; maps that have learned nothing yet get their zeros in `fast`."""

    def through(part: str, z: Tensor) -> Tensor:
        into = p[f"into_{part}"]
        read = torch.einsum("ri,bni->bnr", into, z) if into.dim() == 2 else into * z
        if part not in fast:
            fast[part] = h.new_zeros(len(h), read.shape[2], h.shape[2])
        return torch.einsum("oi,bni->bno", p[part], z) + torch.einsum("bnr,bro->bno", read, fast[part])

    x = h / (h.square().mean(-1, keepdim=True) + 1e-6).sqrt() * p["prime_norm"]
    gate = through("prime_gate", x)
    return through("prime_down", gate / (1 + (-gate).exp()) * through("prime_up", x))


def options_of(recipe: Recipe) -> Gradient:
    """How sleeps learn."""
    return recipe.gradient or Gradient()


def span_of(options: Gradient) -> int:
    """How many tokens a step learns from, if not from all of them; else 0."""
    return (options.span or SPAN) if options.loss == "span" else 0


def _counts(options: Gradient, count: int, step: int) -> list[float]:
    """How much each of the window's `count` next tokens counts, 1 in all, at this step of all that a row takes."""
    if options.loss == "late":
        return [2 * (t + 1) / (count * (count + 1)) for t in range(count)]
    length = min(span_of(options) or count, count)
    start = naive_draw(step) % (count - length + 1)
    return [1 / length if start <= t < start + length else 0.0 for t in range(count)]


def _gradients(sleep: StreamSleep, start: int, old: dict[Key, Tensor], counts: list[float]) -> dict[Key, Tensor]:
    """Of every row's surprise, cut to the norm `clip`; zero where it is not finite."""
    further = torch.is_grad_enabled()
    with torch.enable_grad():
        leaves = {key: x if x.requires_grad else x.detach().requires_grad_() for key, x in old.items()}
        for (i, part), leaf in leaves.items():
            sleep.layers[i].fast[part] = leaf
        h = sleep.block_inputs[start]
        for i in range(start, len(sleep.plans)):
            h = sleep.run(i, h)
        logits = sleep.logits(h)[:, :-1]
        surprise = cross_entropy(logits.transpose(1, 2), sleep.tokens[:, 1:], reduction="none")  # [B,n-1]
        surprise = (surprise * torch.tensor(counts, dtype=surprise.dtype)).sum(1)
        found = torch.autograd.grad(surprise.sum(), list(leaves.values()), create_graph=further)
    norm = torch.cat([g.flatten(1) for g in found], 1).norm(dim=1)
    cut = (options_of(sleep.recipe).clip / norm).clamp(max=1)
    cut = torch.where(torch.isfinite(norm), cut, 0)[:, None, None]
    return {key: torch.where(cut > 0, cut * g, 0) for key, g in zip(leaves, found, strict=True)}
