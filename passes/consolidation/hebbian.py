"""Consolidation `hebbian`: `replay`, and then noise runs through the memory and a local rule changes it, without data.

It is the project's namesake, sleep replay with noise (SRC, Tadros et al. 2022, Nature Communications 13:7742), on fast
weights, and stands here as a baseline: nothing shows that it helps a language model (docs/log.md has what was seen).
With S [dk,dv] the first tensor of a head's memory after the window was written, and `steps` times:

    c = unit(mean + deviation * noise)               a key of noise, with the statistics of the window's written keys
    p = a - clamp(a, -threshold, threshold)          a = read(c) over its root mean square
    S' = S + inc t g(S sgn / t) x pᵀ - dec s |p|ᵀ S  x = sqrt(dk) c, sgn = sign(x pᵀ), s = max(0, 1 - |x|)

g(w) = 2 / (1 + e^w) moves weights that work against what was active, and hardly those that work for it, as SRC's does;
t is the root mean square of S when the noise begins.

What SRC leaves open, or what is different here:
- SRC has spikes: of inputs by chance, of outputs where a potential passes a threshold. A step is no function that two
  backends can agree on, since its last bit decides, and it has no slope for training; so both are graded here.
- Its units are positive. Keys and values have both signs, so the rule is SRC's after the reflections that make inputs
  and outputs positive; an input that is silent has no such reflection, and its weights are weakened instead.
- No potential is carried from step to step: there are a few steps here, and some ten thousand there.
- Noise is the same in every sleep, row and layer: numbers of a fixed generator, by head, step and channel. So what a
  row becomes depends on nothing but its own tokens.
- SRC moves slow weights of MLPs. Here only fast weights move, for each row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, fx

from sleepc.errors import UsageError
from sleepc.ir.states import with_role
from sleepc.memory.registry import RULES
from sleepc.memory.registry import find as find_rule
from sleepc.memory.rule import Rule
from sleepc.passes.consolidation.block_sleep import BlockSleep
from sleepc.passes.consolidation.contract import Plans, StreamSleep
from sleepc.passes.consolidation.drawn import PRIME, draw_nodes, naive_draw
from sleepc.passes.consolidation.replay import Replay
from sleepc.passes.lib.emit import Emit, aten
from sleepc.passes.plan import Asleep
from sleepc.passes.rewrite.memory import EPSILON
from sleepc.passes.rewrite.mixer import rms
from sleepc.recipe import Hebbian, LayerPlan, Recipe

Read = Callable[[list[Tensor], Tensor], Tensor]
WIDTH = 2 * math.sqrt(3)  # of the interval in which uniform numbers have variance 1


class ByNoise(Replay):
    """`replay`, and what noise makes of the memory."""

    name: ClassVar[str] = "hebbian"

    def check_memory(self, recipe: Recipe, plan: LayerPlan, layer: str) -> None:
        """It has to begin with a matrix from keys to values."""
        super().check_memory(recipe, plan, layer)
        if not _is_matrix(find_rule(plan.rule)):
            fits = ", ".join(rule.name for rule in RULES.values() if _is_matrix(rule))
            raise UsageError(
                f"noise runs through a matrix from keys to values, and the memory of rule {plan.rule} is none",
                where=f"{layer}--consolidation {self.name}",
                fix=f"Use --consolidation replay, or a rule that has one ({fits}).",
            )

    def check_unused(self, recipe: Recipe) -> None:
        """Its options say what noise does."""
        if recipe.hebbian is not None:
            raise UsageError(
                f"consolidation {recipe.consolidation} replays no noise",
                where="--hebbian-*",
                fix=f"Add --consolidation {self.name}, or leave them out.",
            )

    def changes(self, recipe: Recipe) -> bool:
        """Noise changes memories."""
        return True

    def asleep(self, recipe: Recipe, plans: Plans, i: int) -> Asleep:
        """The statistics of keys are those of a record."""
        return Asleep(recorded=True, replays=recipe.passes, noise=options_of(recipe))

    def sleep(self, block: BlockSleep) -> dict[str, fx.Node]:
        """The memory, and what noise makes of it."""
        new = super().sleep(block)
        return new | _noisy(block, new)

    def remember(self, sleep: StreamSleep) -> None:
        """The formulas above, step by step."""
        super().remember(sleep)
        for layer, plan in zip(sleep.layers, sleep.plans, strict=True):
            if layer.written is not None and layer.memory is not None:
                read = find_rule(plan.rule).naive_read
                layer.memory = naive_noise(layer.memory, layer.written["k"], read, options_of(sleep.recipe))

    def in_words(self, recipe: Recipe, blocks: int) -> str:
        """What noise does, and that it is a baseline."""
        steps = options_of(recipe).steps
        return f"{Replay().in_words(recipe, blocks)}, and {steps} step{'' if steps == 1 else 's'} of noise (a baseline)"


def options_of(recipe: Recipe) -> Hebbian:
    """What noise does."""
    return recipe.hebbian or Hebbian()


def _is_matrix(rule: Rule) -> bool:
    return next(iter(rule.shapes(2, 3, 5).values())) == (2, 3, 5)


def _noisy(block: BlockSleep, new: dict[str, fx.Node]) -> dict[str, fx.Node]:
    """The memory's first tensor after all steps, by its name; `new` are its tensors after the window was written."""
    e, options = block.e, block.memory
    if options is None or options.asleep.noise is None or not new:
        return {}
    memory, how = with_role(block.cls.states, "memory"), options.asleep.noise
    states, dtype = [new[spec.name] for spec in memory], memory[0].dtype
    heads, width = (int(dim) for dim in memory[0].dims[1:3])
    noise = e.reshape(_uniform(e, heads * how.steps * width, dtype), [1, heads, how.steps, width])
    keys = _keys(e, e.cast(block.record()["k"], dtype), noise, dtype)
    square = e.call(aten.mean.dim, e.mul(states[0], states[0]), [-2, -1], True)
    size = e.call(aten.sqrt.default, e.add(square, EPSILON))
    for t in range(how.steps):
        key = e.call(aten.slice.Tensor, keys, 2, t, t + 1)
        read = e.ours("delta_rule_read", key, states, rule=options.rule, scale=1.0)
        changed = _step(e, states[0], e.mul(key, width**0.5), rms(e, read, EPSILON), size, how)
        states = [changed, *states[1:]]
    return {memory[0].name: states[0]}


def _uniform(e: Emit, count: int, dtype: torch.dtype) -> fx.Node:
    """`count` numbers of mean 0 and variance 1."""
    x = draw_nodes(e, e.call(aten.arange.default, count))
    return e.sub(e.mul(e.cast(x, dtype), WIDTH / PRIME), WIDTH / 2)


def _keys(e: Emit, k: fx.Node, noise: fx.Node, dtype: torch.dtype) -> fx.Node:
    """Keys of noise [B,H,steps,dk], of unit length; zero if nothing was written, as where k [B,H,n,dk] is zero."""

    def sums(x: fx.Node, dim: int) -> fx.Node:
        return e.call(aten.sum.dim_IntList, x, [dim], True)

    written = e.cast(e.call(aten.gt.Scalar, sums(e.mul(k, k), -1), 0), dtype)
    count = sums(written, 2)
    least = e.call(aten.clamp.default, count, 1)
    mean = e.call(aten.div.Tensor, sums(k, 2), least)
    apart = e.mul(e.sub(k, mean), written)
    variance = e.call(aten.div.Tensor, sums(e.mul(apart, apart), 2), least)
    deviation = e.call(aten.sqrt.default, e.add(variance, EPSILON))  # has a slope at 0, too
    some = e.call(aten.clamp.default, count, None, 1)
    return e.ours("l2norm", e.mul(e.add(mean, e.mul(deviation, noise)), some))


def _step(e: Emit, s: fx.Node, x: fx.Node, read: fx.Node, size: fx.Node, how: Hebbian) -> fx.Node:
    """S [B,H,dk,dv] after one key of noise x [B,H,1,dk], and what it reads; both have about unit size."""
    p = e.sub(read, e.call(aten.clamp.default, read, -how.threshold, how.threshold))
    both = e.mul(e.transpose(x, 2, 3), p)
    weight = e.call(aten.div.Tensor, e.where(e.call(aten.ge.Scalar, both, 0), e.neg(s), s), size)
    free = e.mul(e.call(aten.sigmoid.default, weight), 2 * how.inc)
    silent = e.call(aten.relu.default, e.call(aten.rsub.Scalar, e.call(aten.abs.default, e.transpose(x, 2, 3)), 1))
    weaker = e.mul(e.mul(silent, e.call(aten.abs.default, p)), how.dec)
    return e.sub(e.add(s, e.mul(e.mul(free, both), size)), e.mul(weaker, s))


def naive_noise(memory: list[Tensor], k: Tensor, read: Read, how: Hebbian) -> list[Tensor]:
    """The same on numbers, head by head: memory [B,H,dk,dv] .. and the keys of the window k [B,H,n,dk]."""
    (rows, heads, _, width), first = k.shape, memory[0].clone()
    for b in range(rows):
        for h in range(heads):
            keys = k[b, h][k[b, h].square().sum(-1) > 0]
            if not len(keys):
                continue
            deviation = (keys.var(0, correction=0) + 1e-6).sqrt()
            s = first[b, h]
            t = (s.square().mean() + 1e-6).sqrt()
            for step in range(how.steps):
                noise = [naive_number((h * how.steps + step) * width + i) for i in range(width)]
                c = keys.mean(0) + deviation * torch.tensor(noise, dtype=s.dtype)
                x = c / (c.square().sum() + 1e-6).sqrt() * math.sqrt(width)
                a = read([s, *(other[b, h] for other in memory[1:])], x[None] / math.sqrt(width))[0]
                a = a / (a.square().mean() + 1e-6).sqrt()
                p = torch.where(a.abs() > how.threshold, a - how.threshold * a.sign(), 0)
                sgn = torch.outer(x, p).sign()
                g = 2 / (1 + (s * sgn / t).exp())
                silent = (1 - x.abs()).clamp(min=0)
                s = s + how.inc * t * g * torch.outer(x, p) - how.dec * torch.outer(silent, p.abs()) * s
            first[b, h] = s
    return [first, *memory[1:]]


def naive_number(n: int) -> float:
    """Number n of the noise, from 0 on."""
    return math.sqrt(12) * (naive_draw(n) / 2147483579 - 0.5)
