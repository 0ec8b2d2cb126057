"""What a memory's gates are set to from the statistics of the attention that it supplements or replaces.

conversion.md, section 2 C, and docs/decisions/0008.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sleepc.ir.graph import Graph
from sleepc.ir.interp import run
from sleepc.memory.parameters import DECAYS, MIX, MIX_BIAS, OUT_GATE, STRENGTHS
from sleepc.passes.analysis.projections import as_maps, normalised_input, projections
from sleepc.train.statistics import HeadStatistics

TAU = (0.001, 5.0)  # decay per token of a memory in attention's place
LONGEST = 16  # windows: the longest half-life of a memory in parallel to attention, as at conversion
LEAST_SHARE = 1e-3  # of a head's attention: below it there is nothing to set a half-life by
LEAST_MOST = (1e-4, 0.5)  # the mix of a memory in parallel to attention
MIXES = (1 / 4, 1 / 16, 1 / 64)  # parts of what attention lost that a memory which has not learned is let answer for
OPEN = 0.01  # of the context's size: how far an output gate is opened
STRENGTH_WEIGHT, STRENGTH_BIAS = STRENGTHS.weight.port, STRENGTHS.bias.port
DECAY_WEIGHT, DECAY_BIAS, DECAY_RATE = DECAYS.weight.port, DECAYS.bias.port, DECAYS.rate.port


@dataclass(frozen=True)
class Setting:
    """What a layer's memory is. `window`: tokens between sleeps; `decays`, `writes`: how often a token's decay and its
    write are applied by the passes of a sleep; `width`: d_k; `corrects`: does its rule?
    """

    strategy: str
    window: int
    hard: bool
    decays: int
    writes: int
    width: int
    corrects: bool


@dataclass(frozen=True)
class Targets:
    """Of every memory [H]: half-life in tokens (NaN: leave it) and write strength; of every query head [Hq] the
    share of attention that the memory answers for.
    """

    half_life: Tensor
    beta: Tensor
    share: Tensor


def targets(s: HeadStatistics, setting: Setting, memories: int) -> Targets:
    """What the gates of `memories` memories should come to; query heads that share one are averaged."""
    half_life = _half_life(s, setting, memories)
    entropy = _by_memory(s.entropy, memories)
    spread = entropy.max() - entropy.min()
    even = (entropy - entropy.min()) / spread if spread > 0 else torch.full_like(entropy, 0.5)
    beta = 0.3 + 0.4 * (1 - even)
    if setting.corrects:
        # A write erases what lies along its key: n random keys leave about exp(-beta n / width) of what was there, each
        # pass of a sleep anew. What decay is to keep for a half-life, correction must not erase sooner.
        known = torch.nan_to_num(half_life, nan=float(setting.window))
        beta = beta * (2 * math.log(2) * setting.width / (known * setting.writes)).clamp(max=1.0)
    return Targets(half_life * setting.decays, beta, s.share)


def _half_life(s: HeadStatistics, setting: Setting, memories: int) -> Tensor:
    """ln 2 / tau in tokens, before passes multiply it."""
    if setting.strategy == "replace":
        return math.log(2) / (math.log(2) / _by_memory(s.distance, memories)).clamp(*TAU)
    # Attention has what is near: the memory answers for the rest, and has to keep it for as long as it is looked at.
    share = _by_memory(s.share, memories)
    far = _by_memory(s.far * s.share, memories) / share.clamp(min=torch.finfo(torch.float64).tiny)
    least = 1.0 if setting.hard else float(setting.window)
    kept = far.clamp(least, LONGEST * setting.window)
    return torch.where(share > LEAST_SHARE, kept, torch.nan)


def _by_memory(value: Tensor, memories: int) -> Tensor:
    """[Hq] -> [memories], the mean of the query heads that share one."""
    return value.reshape(memories, -1).mean(1)


def gate_values(
    now: Mapping[str, Tensor], goal: Targets, mix: float | None = None, x: Tensor | None = None
) -> dict[str, Tensor]:
    """New values by port for the gates in `now` (a block's new parameters by port), which no longer depend on x.

    softplus(dt) = ln 2 / half-life with log_a = 0, and sigmoid(b_b) = beta; with `mix` sigmoid(b_m) = mix times the
    share that attention lost. A native layer has no b_b: W_b x comes to what b_b would be, as nearly as one
    direction can make it of inputs x [T,hidden].
    """
    zero = torch.zeros_like
    strength = torch.logit(goal.beta)
    values: dict[str, Tensor] = {STRENGTH_BIAS: strength, STRENGTH_WEIGHT: zero(now[STRENGTH_WEIGHT])}
    if STRENGTH_BIAS not in now:
        assert x is not None, "a write gate without a bias is set on inputs"
        values = {STRENGTH_WEIGHT: strength[:, None] * steady(x)}
    if DECAY_BIAS in now:
        rows = now[DECAY_BIAS].shape[0] // len(goal.half_life)
        half_life = goal.half_life.repeat_interleave(rows)
        dt = torch.log(torch.expm1(math.log(2) / half_life))
        kept = torch.isnan(half_life)
        values[DECAY_BIAS] = torch.where(kept, now[DECAY_BIAS].double(), dt)
        values[DECAY_RATE] = torch.where(kept, now[DECAY_RATE].double(), 0.0)
        values[DECAY_WEIGHT] = zero(now[DECAY_WEIGHT])
    if mix is not None and MIX_BIAS.port in now:
        mixed = torch.logit((goal.share * mix).clamp(*LEAST_MOST))
        values |= {MIX_BIAS.port: mixed, MIX.port: zero(now[MIX.port])}
    return {port: value.to(now[port].dtype) for port, value in values.items()}


def steady(x: Tensor) -> Tensor:
    """m [hidden] for which x m is 1 as nearly as possible, for inputs x [T,hidden]: least squares, with a ridge of
    1e-3 of their mean square.
    """
    x = x.double()
    inner = x @ x.T
    ridge = 1e-3 * inner.diagonal().mean() * torch.eye(len(x), dtype=torch.float64)
    weights: Tensor = torch.linalg.solve(inner + ridge, torch.ones(len(x), dtype=torch.float64))
    return x.T @ weights


@torch.no_grad()
def inputs(wake: Graph, bound: Mapping[str, Tensor], h: Tensor) -> Tensor:
    """x [T,hidden] of hidden states h [1,T,hidden]; wake: the original block, `bound` its parameters by port."""
    found: Tensor = run(normalised_input(wake), {**bound, "h": h})["x"]
    return found[0]


def output_gate(
    now: Mapping[str, Tensor], s: HeadStatistics, wake: Graph, bound: Mapping[str, Tensor], x_like: Tensor
) -> dict[str, Tensor]:
    """W_g = alpha W_v for a mixer in attention's place, alpha = 0.01 RMS(context) / RMS(silu(v)), by port.

    wake: the original block, `bound` its parameters by port, `x_like` [1,T,hidden] some hidden states. If v is not
    linear in the block's normalised input, small random numbers of the same size.
    """
    gate = now[OUT_GATE.port]
    heads = len(s.context)
    alpha = OPEN * s.context / s.value.clamp(min=torch.finfo(torch.float32).tiny)
    maps = as_maps(projections(wake, ("v",)), bound, x_like)
    found = None if maps is None else maps["v"]
    if found is None:
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(gate.shape, generator=generator, dtype=torch.float64) * gate.shape[1] ** -0.5
        found = (rows * s.value.repeat_interleave(len(rows) // heads)[:, None]).reshape(heads, -1, gate.shape[1])
    by_head = found.double().repeat_interleave(heads // len(found), 0)
    return {OUT_GATE.port: (alpha[:, None, None] * by_head).reshape(gate.shape).to(gate.dtype)}


def half_lives(values: Mapping[str, Tensor]) -> Tensor | None:
    """In tokens, at x = 0, of a block's new parameters by port: float64 [rows]; None for a rule without decay."""
    if DECAY_BIAS not in values:
        return None
    decay = torch.nn.functional.softplus(values[DECAY_BIAS].double()) * values[DECAY_RATE].double().exp()
    return math.log(2) / decay


def strengths(values: Mapping[str, Tensor], x: Tensor | None = None) -> Tensor:
    """beta at x = 0 or, of a native layer, at the mean of inputs x [T,hidden]: float64 [H]."""
    if STRENGTH_BIAS in values:
        return torch.sigmoid(values[STRENGTH_BIAS].double())
    assert x is not None, "a write gate without a bias is 1/2 at x = 0"
    return torch.sigmoid(values[STRENGTH_WEIGHT].double() @ x.double().mean(0))
