"""How far a student is from its teacher: logits of some tokens at a time, which are gone before the next ones come."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sleepc.backends.training_steps import TrainingSteps, Values
from sleepc.train.losses import ROWS


def divergence(
    student: TrainingSteps, values: Values, teacher: TrainingSteps, lesson: Values, real: Tensor, words: int | None
) -> Tensor:
    """Forward KL(teacher ‖ student) over the first `words`, summed over the tokens that are real, bool [B,T] -> scalar.

    values, lesson: what the heads read, of programs for which `alone` is true. The gradient is computed here and now,
    so that the backward pass needs no logits; there are no second derivatives.
    """
    found = [
        _part(student, {**values, "h": own}, teacher, {**lesson, "h": taught}, words)
        for own, taught in zip(values["h"][real].split(ROWS), lesson["h"][real].split(ROWS), strict=True)
    ]
    losses, slopes = zip(*found, strict=True)
    h = values["h"][real]
    loss: Tensor = _Known.apply(h, torch.stack(losses).sum(), torch.cat(slopes))  # type: ignore[no-untyped-call]
    return loss


def alone(steps: TrainingSteps) -> bool:
    """Does the head read h alone, and has it nothing to learn?"""
    ports = steps.program.head.ports()
    reads = set(steps.program.head.ports("input")) == {"h"}
    return reads and not any(p.requires_grad for key, p in steps.parameters.items() if key in ports)


def _part(
    student: TrainingSteps, values: Values, teacher: TrainingSteps, lesson: Values, words: int | None
) -> tuple[Tensor, Tensor]:
    """Of some tokens, h [n,d] in values and lesson: (the divergence, its gradient [n,d])."""
    h = values["h"].detach().requires_grad_()
    every = torch.ones(1, len(h), dtype=torch.bool, device=h.device)
    with torch.no_grad():
        wanted = teacher.logits_at({**lesson, "h": lesson["h"][None]}, every)[..., :words]
    with torch.enable_grad():
        logits = student.logits_at({**values, "h": h[None]}, every)[..., :words]
    with torch.no_grad():
        wide = torch.promote_types(logits.dtype, torch.float32)
        log_p, log_q = wanted.log_softmax(-1, dtype=wide), logits.log_softmax(-1, dtype=wide)
        p = log_p.exp()
        loss = log_p.sub_(log_q).mul_(p).sum()
        slope = log_q.exp_().sub_(p)
    return loss, torch.autograd.grad(logits, h, slope.to(logits.dtype))[0]


class _Known(torch.autograd.Function):
    """A loss whose gradient is known already."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, loss: Tensor, slope: Tensor) -> Tensor:
        """h [n,d], loss [], slope [n,d] -> loss."""
        del h
        ctx.save_for_backward(slope)
        return loss.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of h."""
        (slope,) = ctx.saved_tensors
        return gradient * slope, None, None
