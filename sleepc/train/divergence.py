"""How far a student is from its teacher: logits of some tokens at a time, which are gone before the next ones come."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from sleepc.backends.training_steps import TrainingSteps, Values
from sleepc.train.losses import ROWS
from sleepc.train.weighing import Weighing


@dataclass(frozen=True)
class BeforeHead:
    """A program, and the values that its head reads: h [B,T,d], or [n,d] of some tokens."""

    steps: TrainingSteps
    values: Values

    def of(self, h: Tensor) -> BeforeHead:
        """The same with another h."""
        return BeforeHead(self.steps, {**self.values, "h": h})

    def logits(self) -> Tensor:
        """Of all tokens of h [n,d]: [n,V]."""
        h = self.values["h"][None]
        return self.steps.logits_at({**self.values, "h": h}, torch.ones(h.shape[:2], dtype=torch.bool, device=h.device))


def divergence(
    student: BeforeHead, teacher: BeforeHead, real: Tensor, shared: int | None, weighing: Weighing | None = None
) -> Tensor:
    """Forward KL(teacher ‖ student) over the first `shared` tokens of the vocabulary, summed over the tokens that are
    real, bool [B,T] -> scalar. With `weighing`, of the real tokens, it is the weighted sum.

    student, teacher: programs for which `alone` is true, and what their heads read. The gradient is computed here and
    now, so that the backward pass needs no logits; there are no second derivatives.
    """
    h, taught = student.values["h"][real], teacher.values["h"][real]
    weighed = weighing.split(ROWS) if weighing is not None else repeat(None)
    parts = zip(h.split(ROWS), taught.split(ROWS), weighed, strict=False)
    found = [_part(student.of(own), teacher.of(wanted), shared, each) for own, wanted, each in parts]
    losses, slopes = zip(*found, strict=True)
    loss: Tensor = _Known.apply(h, torch.stack(losses).sum(), torch.cat(slopes))  # type: ignore[no-untyped-call]
    return loss


def alone(steps: TrainingSteps) -> bool:
    """Does the head read h alone, and has it nothing to learn?"""
    ports = steps.program.head.ports()
    reads = set(steps.program.head.ports("input")) == {"h"}
    return reads and not any(p.requires_grad for key, p in steps.parameters.items() if key in ports)


def _part(
    student: BeforeHead, teacher: BeforeHead, shared: int | None, weighing: Weighing | None
) -> tuple[Tensor, Tensor]:
    """Of some tokens, h [n,d]: (the divergence, its gradient [n,d])."""
    h = student.values["h"].detach().requires_grad_()
    with torch.no_grad():
        wanted = teacher.logits()[..., :shared]
    with torch.enable_grad():
        logits = student.of(h).logits()[..., :shared]
    with torch.no_grad():
        wide = torch.promote_types(logits.dtype, torch.float32)
        log_p, log_q = wanted.log_softmax(-1, dtype=wide), logits.log_softmax(-1, dtype=wide)
        weights = weighing.weights(log_p, log_q)[:, None] if weighing is not None else None
        p = log_p.exp()
        each, slope = log_p.sub_(log_q).mul_(p), log_q.exp_().sub_(p)
        if weights is not None:
            each, slope = each.mul_(weights), slope.mul_(weights)
        loss = each.sum()
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
