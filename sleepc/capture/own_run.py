"""Does a model run at all, by its own code? One that does not is no matter of what can be exported."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sleepc.capture.call import BATCH, LENGTH, TokensToLogits
from sleepc.capture.export_errors import place_of
from sleepc.capture.fake_run import fake_run, left_alone
from sleepc.capture.kernel_seam import plain_kernels
from sleepc.capture.quiet import quiet
from sleepc.errors import SleepcError, UsageError


class CannotRun(UsageError):
    """The model's own code fails, or computes no numbers; `reason` says how."""

    def __init__(self, reason: str, where: str, fix: str, cause: str = "") -> None:
        self.reason = reason
        cause = cause or "the model cannot be called with tokens"
        super().__init__(f"{cause}: its own code {reason}", where=where, fix=fix)


@quiet()
def require_run(model: nn.Module) -> None:
    """Raises CannotRun if the model fails at a few tokens. With weights on meta it is called with fakes."""
    call, tokens, positions = _question(model)
    with _own_failure(type(model).__name__):
        if tokens.is_meta:
            fake_run(call, tokens, positions)
        else:
            _answer(call, tokens, positions)


def require_finite(ask: Callable[[], Tensor], name: str) -> None:
    """Raises CannotRun if the model of this name fails when it is asked for logits, or they are not finite."""
    with _own_failure(name):
        logits = ask()
    if not logits.isfinite().all():
        raise CannotRun("computes logits that are not finite", name, FIX)


@quiet()
def require_finite_answer(model: nn.Module, most: int | None = None) -> None:
    """The same of a few tokens, at most `most`. The model has weights."""
    call, tokens, positions = _question(model)
    with warnings.catch_warnings(action="ignore"):  # as it is exported
        require_finite(lambda: _answer(call, tokens[:, :most], positions[:, :most]), type(model).__name__)


FIX = "Call it yourself with tokens [B, T], whole numbers; correct its code, or its configuration."


@contextmanager
def _own_failure(name: str) -> Iterator[None]:
    try:
        yield
    except SleepcError:
        raise
    except Exception as error:  # the model's own code, which may raise anything
        first = next(iter(str(error).splitlines()), "").strip()
        reason = f"fails with {type(error).__name__}: {first} ({place_of(error)})"
        raise CannotRun(reason, name, FIX) from error


def _question(model: nn.Module) -> tuple[TokensToLogits, Tensor, Tensor]:
    """What is called, and with which tokens [B,T] and positions [B,T]."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    tokens = torch.zeros(BATCH, LENGTH, dtype=torch.int64, device=device)
    return TokensToLogits(model.eval()), tokens, torch.arange(LENGTH, device=device).expand(BATCH, LENGTH)


def _answer(call: TokensToLogits, tokens: Tensor, positions: Tensor) -> Tensor:
    with left_alone(call), plain_kernels(call), torch.no_grad():
        logits: Tensor = call(tokens, positions)
    return logits
