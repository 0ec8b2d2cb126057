"""The kernels as operators of PyTorch, `sleepc_triton::NAME`, which gradients go through: training, torch.compile and
torch.export work with them. All are contiguous, g is [B, H, T] or [B, H, T, dk]; there are no second derivatives.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sleepc.backends.triton import launch, training
from sleepc.backends.triton.choices import SHORTEST, Problem
from sleepc.backends.triton.launch import WrittenTokens

NAMESPACE = "sleepc_triton"


def _problem(t: WrittenTokens, rule: tuple[bool, bool, int]) -> Problem:
    corrects, decays, chunk = rule
    return launch.problem(t, chunk=chunk, corrects=corrects, decays=decays)


@torch.library.custom_op(f"{NAMESPACE}::delta_rule", mutates_args=())
def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor,
    scale: float, corrects: bool, decays: bool, chunk: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """q [B, Hq, T, dk] and what is written -> what is read [B, max(Hq, H), T, dv], and the state [B, H, dk, dv]."""
    t = WrittenTokens(k, v, g, beta)
    it = _problem(t, (corrects, decays, chunk))
    done = launch.advance(t, state, it)
    return launch.answer(q, t, done, scale, it), done.end


@delta_rule.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    heads = max(q.shape[1], v.shape[1])
    out = q.new_empty(q.shape[0], heads, q.shape[2], v.shape[3], dtype=launch.working(k))
    return out, torch.empty_like(state)


@torch.library.custom_op(f"{NAMESPACE}::delta_rule_backward", mutates_args=())
def delta_rule_backward(
    d_out: Tensor, d_end: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor,
    scale: float, corrects: bool, decays: bool, chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v, g, beta and the state."""
    t = WrittenTokens(k, v, g, beta)
    given = d_out.contiguous(), d_end.contiguous()
    made = training.of_stream(q, t, state, given, scale, _problem(t, (corrects, decays, chunk)))
    return made[0], made[1], made[2], made[3], made[4], made[5]


@delta_rule_backward.register_fake
def _(d_out: Tensor, d_end: Tensor, *given: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(x) for x in given[:6])


@torch.library.custom_op(f"{NAMESPACE}::step", mutates_args=())
def step(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor,
    scale: float, corrects: bool, decays: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`delta_rule` of one token."""
    t = WrittenTokens(k, v, g, beta)
    return launch.step(q, t, state, scale, _problem(t, (corrects, decays, SHORTEST)))


@step.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    heads = max(q.shape[1], v.shape[1])
    return q.new_empty(q.shape[0], heads, 1, v.shape[3], dtype=launch.working(k)), torch.empty_like(state)


@torch.library.custom_op(f"{NAMESPACE}::recall", mutates_args=())
def recall(q: Tensor, state: Tensor, scale: float, chunk: int) -> Tensor:
    """What q [B, Hq, T, dk] reads from a state [B, H, dk, dv] as it is -> [B, max(Hq, H), T, dv]."""
    return launch.recall(q, state, scale, launch.reading(q, state, chunk))


@recall.register_fake
def _(q: Tensor, state: Tensor, *_: Any) -> Tensor:
    heads = max(q.shape[1], state.shape[1])
    return q.new_empty(q.shape[0], heads, q.shape[2], state.shape[3], dtype=launch.working(q))


@torch.library.custom_op(f"{NAMESPACE}::replay", mutates_args=())
def replay(
    k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor,
    firsts: int, passes: int, corrects: bool, decays: bool, chunk: int,
) -> Tensor:  # fmt: skip
    """The state [B, H, dk, dv] after `firsts` passes over what is written, and `passes` without decay."""
    t = WrittenTokens(k, v, g, beta)
    return launch.replay(t, state, firsts, passes, _problem(t, (corrects, decays, chunk)))


@replay.register_fake
def _(k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(state)


@torch.library.custom_op(f"{NAMESPACE}::replay_backward", mutates_args=())
def replay_backward(
    d_end: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor,
    firsts: int, passes: int, corrects: bool, decays: bool, chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of k, v, g, beta and the state."""
    t = WrittenTokens(k, v, g, beta)
    it = _problem(t, (corrects, decays, chunk))
    made = training.of_replay(t, state, d_end.contiguous(), firsts, passes, it)
    return made[0], made[1], made[2], made[3], made[4]


@replay_backward.register_fake
def _(d_end: Tensor, *given: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(x) for x in given[:5])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*(x for x in inputs if isinstance(x, Tensor)))
    ctx.options = [x for x in inputs if not isinstance(x, Tensor)]


def _delta_rule_gradients(ctx: Any, d_out: Tensor, d_end: Tensor) -> tuple[Any, ...]:
    made = delta_rule_backward(d_out, d_end, *ctx.saved_tensors, *ctx.options)
    return (*made, *[None] * len(ctx.options))


def _replay_gradients(ctx: Any, d_end: Tensor) -> tuple[Any, ...]:
    return (*replay_backward(d_end, *ctx.saved_tensors, *ctx.options), *[None] * len(ctx.options))


delta_rule.register_autograd(_delta_rule_gradients, setup_context=_setup)
replay.register_autograd(_replay_gradients, setup_context=_setup)
